//! `/admin/v1/keys`: all keys, or one.

use std::num::{NonZeroU32, NonZeroU64};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Admin, Changed, Invalid};
use crate::auth::{Change, KeyChange, KeyId, KeyLimits, KeyRecord, Terms};
use crate::http::{Error, body};

/// Longest name of a key, in bytes.
const NAME_LEN_MAX: usize = 256;
/// Most models in a key's list.
const MODELS_MAX: usize = 256;

/// All keys.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::http) struct KeyList {
    object: &'static str,
    data: Vec<KeyObject>,
}

/// A key on the wire. Times are Unix seconds, as everywhere in OpenAI's API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyObject {
    id: i64,
    object: &'static str,
    name: String,
    /// The key itself: once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    prefix: String,
    state: &'static str,
    created_at: i64,
    expires_at: Option<i64>,
    disabled_at: Option<i64>,
    revoked_at: Option<i64>,
    models: Vec<String>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    concurrent_requests: Option<NonZeroU32>,
    monthly_tokens: Option<NonZeroU64>,
}

/// What a key is made with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct NewKey {
    name: String,
    expires_at: Option<i64>,
    #[serde(default)]
    models: Vec<String>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    concurrent_requests: Option<NonZeroU32>,
    monthly_tokens: Option<NonZeroU64>,
}

/// What is changed of a key. A field that is absent stays; `null` takes a limit away.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct KeyPatch {
    name: Option<String>,
    active: Option<bool>,
    models: Option<Vec<String>>,
    #[serde(deserialize_with = "change")]
    #[schemars(with = "Option<i64>")]
    expires_at: Change<i64>,
    #[serde(deserialize_with = "change")]
    #[schemars(with = "Option<NonZeroU32>")]
    requests_per_minute: Change<NonZeroU32>,
    #[serde(deserialize_with = "change")]
    #[schemars(with = "Option<NonZeroU32>")]
    tokens_per_minute: Change<NonZeroU32>,
    #[serde(deserialize_with = "change")]
    #[schemars(with = "Option<NonZeroU32>")]
    concurrent_requests: Change<NonZeroU32>,
    #[serde(deserialize_with = "change")]
    #[schemars(with = "Option<NonZeroU64>")]
    monthly_tokens: Change<NonZeroU64>,
}

// === Routes ===

pub(super) async fn list(State(admin): State<Admin>) -> Result<Json<KeyList>, Error> {
    let now = admin.keys.clock().unix_seconds();
    let keys = admin.keys.list().await?;
    let data = keys.into_iter().map(|record| KeyObject::new(record, now)).collect();
    Ok(Json(KeyList { object: "list", data }))
}

pub(super) async fn create(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let new: NewKey = parse(&admin, &headers, body).await?;
    let terms = new.terms(&admin)?;
    let (record, key) = admin.keys.create(&terms).await?;
    let changed = Changed { key: Some(record.id), fields: Vec::new() };
    let mut object = KeyObject::new(record, admin.keys.clock().unix_seconds());
    object.key = Some(key.expose().to_owned());
    Ok((StatusCode::CREATED, Extension(changed), Json(object)).into_response())
}

pub(super) async fn retrieve(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<KeyObject>, Error> {
    let record = admin.keys.get(key_id(&id)?).await?;
    Ok(Json(KeyObject::new(record, admin.keys.clock().unix_seconds())))
}

pub(super) async fn update(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let id = key_id(&id)?;
    let change = parse::<KeyPatch>(&admin, &headers, body).await?.change(&admin)?;
    let record = admin.keys.update(id, &change).await?;
    let changed = Changed { key: Some(id), fields: change.fields() };
    let object = KeyObject::new(record, admin.keys.clock().unix_seconds());
    Ok((Extension(changed), Json(object)).into_response())
}

pub(super) async fn revoke(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<KeyObject>, Error> {
    let id = key_id(&id)?;
    let record = admin.keys.revoke(id).await?;
    Ok(Json(KeyObject::new(record, admin.keys.clock().unix_seconds())))
}

// === Parts ===

/// What is no number is no key's number either.
fn key_id(id: &str) -> Result<KeyId, Error> {
    let parsed = id.parse().map_err(|_| Invalid::new("id", "is not the number of a key"))?;
    Ok(KeyId::new(parsed))
}

async fn parse<T: DeserializeOwned>(
    admin: &Admin,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Error> {
    let bytes = body::read(headers, body, &admin.limits).await?;
    let mut json = serde_json::Deserializer::from_slice(&bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // A field that is missing or unknown has no path; the message names it.
        if path == "." { Invalid { param: None, message } } else { Invalid::new(&path, message) }
    })?;
    json.end().map_err(|error| Invalid { param: None, message: error.to_string() })?;
    Ok(parsed)
}

/// Present is a change; `null` clears.
fn change<'de, T, D>(deserializer: D) -> Result<Change<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.map_or(Change::Clear, Change::Set))
}

fn check_name(name: &str) -> Result<(), Invalid> {
    if name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
        let rule = format!("must have at most {NAME_LEN_MAX} bytes and no control characters");
        return Err(Invalid::new("name", rule));
    }
    Ok(())
}

fn check_models(models: &[String]) -> Result<(), Invalid> {
    if models.len() > MODELS_MAX {
        return Err(Invalid::new("models", format!("must have at most {MODELS_MAX} entries")));
    }
    if models.iter().any(|model| model.is_empty() || model.chars().any(char::is_control)) {
        return Err(Invalid::new("models", "an id must not be empty or hold control characters"));
    }
    Ok(())
}

fn check_expiry(admin: &Admin, expires_at: i64) -> Result<(), Invalid> {
    if expires_at <= admin.keys.clock().unix_seconds() {
        return Err(Invalid::new("expires_at", "must be Unix seconds of a time to come"));
    }
    Ok(())
}

// === impl KeyObject ===

impl KeyObject {
    /// A key as it is at a moment, in Unix seconds.
    #[must_use]
    pub fn new(record: KeyRecord, now: i64) -> Self {
        let state = record.state(now).as_str();
        let KeyRecord { id, prefix, created_at, revoked_at, disabled_at, terms } = record;
        let Terms { name, expires_at, models, limits } = terms;
        Self {
            id: id.get(),
            object: "api_key",
            name,
            key: None,
            prefix,
            state,
            created_at,
            expires_at,
            disabled_at,
            revoked_at,
            models,
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            concurrent_requests: limits.concurrent_requests,
            monthly_tokens: limits.monthly_tokens,
        }
    }
}

// === impl NewKey ===

impl NewKey {
    fn terms(self, admin: &Admin) -> Result<Terms, Invalid> {
        check_name(&self.name)?;
        check_models(&self.models)?;
        self.expires_at.map_or(Ok(()), |at| check_expiry(admin, at))?;
        let limits = KeyLimits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
            monthly_tokens: self.monthly_tokens,
        };
        Ok(Terms { name: self.name, expires_at: self.expires_at, models: self.models, limits })
    }
}

// === impl KeyPatch ===

impl KeyPatch {
    fn change(self, admin: &Admin) -> Result<KeyChange, Invalid> {
        self.name.as_deref().map_or(Ok(()), check_name)?;
        self.models.as_deref().map_or(Ok(()), check_models)?;
        if let Change::Set(at) = self.expires_at {
            check_expiry(admin, at)?;
        }
        Ok(KeyChange {
            name: self.name,
            active: self.active,
            models: self.models,
            expires_at: self.expires_at,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
            monthly_tokens: self.monthly_tokens,
        })
    }
}
