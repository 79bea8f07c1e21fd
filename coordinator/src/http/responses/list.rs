//! A list, page by page, as OpenAI's API has them.

use serde_json::{Value, json};

use crate::chat::invalid::{Invalid, InvalidCode};

/// Items of a page that does not say.
const LIMIT_DEFAULT: usize = 20;
/// Most items of a page.
const LIMIT_MAX: usize = 100;

/// Which part of a list is wanted.
#[derive(Debug)]
pub(super) struct Page {
    limit: usize,
    newest_first: bool,
    after: Option<String>,
}

// === impl Page ===

impl Page {
    /// Reads a query's `limit`, `order` and `after`. Items have no fields that `include` could add.
    pub(super) fn read(parameters: &[(String, String)]) -> Result<Self, Invalid> {
        let mut page = Self { limit: LIMIT_DEFAULT, newest_first: true, after: None };
        for (name, value) in parameters {
            match name.as_str() {
                "limit" => page.limit = limit(value)?,
                "order" if value == "desc" => page.newest_first = true,
                "order" if value == "asc" => page.newest_first = false,
                "order" => {
                    let what = format!("is {value:?}, but must be asc or desc");
                    return Err(Invalid::new(InvalidCode::Value, "order", &what));
                }
                "after" => page.after = Some(value.clone()),
                _ => {}
            }
        }
        Ok(page)
    }

    /// The page of `items`, which are in the order of time.
    pub(super) fn of(&self, mut items: Vec<Value>) -> Result<Value, Invalid> {
        if self.newest_first {
            items.reverse();
        }
        if let Some(after) = &self.after {
            let Some(index) = items.iter().position(|item| item["id"] == *after.as_str()) else {
                let what = format!("is {after:?}, which is no item of this response");
                return Err(Invalid::new(InvalidCode::Value, "after", &what));
            };
            items.drain(..=index);
        }
        let has_more = items.len() > self.limit;
        items.truncate(self.limit);
        let id = |item: Option<&Value>| item.map(|item| item["id"].clone()).unwrap_or_default();
        let (first_id, last_id) = (id(items.first()), id(items.last()));
        Ok(json!({
            "object": "list", "data": items, "first_id": first_id, "last_id": last_id,
            "has_more": has_more,
        }))
    }
}

fn limit(value: &str) -> Result<usize, Invalid> {
    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| {
        let what = format!("is {value:?}, but must be within 1..={LIMIT_MAX}");
        Invalid::new(InvalidCode::Value, "limit", &what)
    })
}
