//! `/admin/v1/usage`: what was used.

use axum::Json;
use axum::extract::{Query as UriQuery, State};
use axum::http::Uri;
use jiff::civil::Date;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Admin, Invalid};
use crate::auth::KeyId;
use crate::auth::report::{Group, GroupBy, Query, Sum};
use crate::http::Error;

/// Sums of usage.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::http) struct UsageList {
    object: &'static str,
    from: String,
    to: String,
    group_by: &'static str,
    data: Vec<UsageObject>,
}

/// A sum of usage on the wire.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UsageObject {
    #[serde(flatten)]
    group: GroupObject,
    requests: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
    total_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum GroupObject {
    Day { day: String },
    Key { key_id: i64, key_name: String },
    Model { model: String },
}

pub(super) async fn sum_up(State(admin): State<Admin>, uri: Uri) -> Result<Json<UsageList>, Error> {
    let query = parse(&uri, admin.keys.clock().today())?;
    let sums = admin.keys.usage(&query).await?;
    Ok(Json(UsageList {
        object: "list",
        from: query.from.to_string(),
        to: query.to.to_string(),
        group_by: query.group_by.as_str(),
        data: sums.iter().map(UsageObject::from).collect(),
    }))
}

/// Reads the parameters. Without dates it is the current month so far.
fn parse(uri: &Uri, today: Date) -> Result<Query, Invalid> {
    let UriQuery(params) = UriQuery::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Invalid { param: None, message: error.body_text() })?;
    let mut query = Query {
        from: today.first_of_month(),
        to: today,
        key_id: None,
        model: None,
        group_by: GroupBy::default(),
    };
    for (name, value) in params {
        match name.as_str() {
            "from" => query.from = date("from", &value)?,
            "to" => query.to = date("to", &value)?,
            "key_id" => {
                let id = value.parse();
                let id = id.map_err(|_| Invalid::new("key_id", "is not the number of a key"))?;
                query.key_id = Some(KeyId::new(id));
            }
            "model" => query.model = Some(value),
            "group_by" => {
                query.group_by = value.parse().map_err(|error| Invalid::new("group_by", error))?;
            }
            unknown => {
                let known = "there are from, to, key_id, model and group_by";
                return Err(Invalid::new(unknown, format!("is no parameter; {known}")));
            }
        }
    }
    if query.from > query.to {
        let (from, to) = (query.from, query.to);
        return Err(Invalid::new("from", format!("{from} is later than the last day, {to}")));
    }
    Ok(query)
}

fn date(param: &str, value: &str) -> Result<Date, Invalid> {
    // A time of day would be accepted and ignored.
    let fits = value.len() == "YYYY-MM-DD".len();
    let parsed = value.parse().ok().filter(|_| fits);
    parsed.ok_or_else(|| Invalid::new(param, "must be a date, YYYY-MM-DD"))
}

// === impl UsageObject ===

impl From<&Sum> for UsageObject {
    fn from(sum: &Sum) -> Self {
        let Sum { group, requests, tokens } = sum;
        let group = match group {
            Group::Day(day) => GroupObject::Day { day: day.to_string() },
            Group::Key(id, name) => GroupObject::Key { key_id: id.get(), key_name: name.clone() },
            Group::Model(model) => GroupObject::Model { model: model.clone() },
        };
        Self {
            group,
            requests: *requests,
            prompt_tokens: tokens.prompt,
            cached_tokens: tokens.cached,
            completion_tokens: tokens.completion,
            reasoning_tokens: tokens.reasoning,
            total_tokens: tokens.total(),
        }
    }
}
