//! Lists, page by page, as OpenAI's API has them.

use axum::extract::Query;
use schemars::JsonSchema;
use serde::Serialize;

use crate::chat::invalid::{Invalid, InvalidCode};
use crate::files::Page;

/// Parameters of a query, as they were sent.
pub(super) type Parameters = Query<Vec<(String, String)>>;

/// A page on the wire.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct List<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

// === impl List ===

impl<T> List<T> {
    /// A page of objects, whose ids `id` knows.
    pub(super) fn new(page: Page<T>, id: impl Fn(&T) -> &str) -> Self {
        let Page { items: data, has_more } = page;
        let first_id = data.first().map(|item| id(item).to_owned());
        let last_id = data.last().map(|item| id(item).to_owned());
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// A parameter `limit` from 1 on.
pub(super) fn limit(value: &str, max: u32) -> Result<u32, Invalid> {
    let limit = value.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| {
        let what = format!("is {value:?}, but must be within 1..={max}");
        Invalid::new(InvalidCode::Value, "limit", &what)
    })
}

/// A parameter `order`: whether the latest come first.
pub(super) fn newest_first(value: &str) -> Result<bool, Invalid> {
    match value {
        "desc" => Ok(true),
        "asc" => Ok(false),
        _ => {
            let what = format!("is {value:?}, but must be asc or desc");
            Err(Invalid::new(InvalidCode::Value, "order", &what))
        }
    }
}
