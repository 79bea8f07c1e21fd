//! Items of a conversation: read, completed and found again.

use deepseek_recipe::openai::responses::request::ResponsesInputItem;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::chat::invalid::{Invalid, InvalidCode};

/// An item that only names another.
const REFERENCE: &str = "item_reference";

/// Types of items that become part of the prompt, and what the ids of those begin with that come without one.
const TYPES: [(&str, &str); 7] = [
    ("message", "msg_"),
    ("function_call", "fc_"),
    ("function_call_output", "fco_"),
    ("reasoning", "rs_"),
    ("custom_tool_call", "ctc_"),
    ("custom_tool_call_output", "ctco_"),
    (REFERENCE, ""),
];

/// The items of `input`, each with a type and an id, as they will be listed.
///
/// # Errors
/// [`Invalid`], naming the item.
pub fn read(input: Option<Value>) -> Result<Vec<Value>, Invalid> {
    match input {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![complete(
            [("type".to_owned(), "message".into()), ("role".to_owned(), "user".into())]
                .into_iter()
                .chain([("content".to_owned(), text.into())])
                .collect(),
            "message",
            "msg_",
        )]),
        Some(Value::Array(items)) if items.is_empty() => {
            Err(Invalid::new(InvalidCode::Value, "input", "has no items"))
        }
        Some(Value::Array(items)) => {
            items.into_iter().enumerate().map(|(index, item)| read_item(index, item)).collect()
        }
        Some(_) => {
            Err(Invalid::new(InvalidCode::Type, "input", "must be a string or a list of items"))
        }
    }
}

fn read_item(index: usize, item: Value) -> Result<Value, Invalid> {
    let path = format!("input[{index}]");
    let Value::Object(item) = item else {
        return Err(Invalid::new(InvalidCode::Type, &path, "must be an object"));
    };
    let kind = match item.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        None | Some(Value::Null) if item.contains_key("role") => "message",
        None | Some(Value::Null) if item.contains_key("id") => REFERENCE,
        _ => {
            let path = format!("{path}.type");
            return Err(Invalid::new(InvalidCode::Missing, &path, "is required"));
        }
    };
    let Some((kind, prefix)) = TYPES.into_iter().find(|(name, _)| *name == kind) else {
        let what = format!("is {kind:?}, which this server does not know how to show the model");
        return Err(Invalid::unsupported(&format!("{path}.type"), &what));
    };
    Ok(complete(item, kind, prefix))
}

/// Adds what clients may leave out.
fn complete(mut item: Map<String, Value>, kind: &str, id_prefix: &str) -> Value {
    item.insert("type".to_owned(), kind.into());
    if kind == "message"
        && let Some(Value::String(text)) = item.get("content")
    {
        let is_own = item.get("role").is_some_and(|role| role == "assistant");
        let kind = if is_own { "output_text" } else { "input_text" };
        let content = json!([{ "type": kind, "text": text }]);
        item.insert("content".to_owned(), content);
    }
    if item.get("id").is_none_or(Value::is_null) {
        let id = format!("{id_prefix}{}", Uuid::new_v4().simple());
        item.insert("id".to_owned(), id.into());
    }
    Value::Object(item)
}

/// Puts items in the place of references to them.
pub(super) fn resolve(
    items: &mut [Value],
    find: impl Fn(&str) -> Option<Value>,
) -> Result<(), Invalid> {
    for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| item["type"] == REFERENCE)
    {
        let id = item["id"].as_str().unwrap_or_default();
        let Some(found) = find(id) else {
            let what = format!("is {id:?}, which is no item that this server has kept");
            return Err(Invalid::new(InvalidCode::Value, &format!("input[{index}].id"), &what));
        };
        *item = found;
    }
    Ok(())
}

/// The first item that the request type does not take, which names no more than the list itself.
pub(super) fn culprit(items: &[Value]) -> Option<Invalid> {
    items.iter().enumerate().find_map(|(index, item)| {
        let error = ResponsesInputItem::deserialize(item).err()?;
        let path = format!("input[{index}]");
        Some(Invalid::new(InvalidCode::Value, &path, &format!("cannot be read: {error}")))
    })
}

/// Id of the response that made an item, which is within the item's id.
#[must_use]
pub fn response_of(item_id: &str) -> Option<&str> {
    let (_, rest) = item_id.split_once('_')?;
    rest.rsplit_once('_').map(|(response, _)| response)
}
