//! Strict schemas as they were sent.
//!
//! Conversion closes every object of a strict schema and makes all of its properties required, but leaves out each
//! keyword that it has no type for, such as the `enum` of an integer, the bounds of an array, or `$defs`. A grammar can
//! enforce them, so they are put back; what it cannot enforce is refused when it is compiled.

use std::collections::BTreeMap;

use serde_json::Value;

/// The parameters of strict tools, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::chat) struct StrictTools(BTreeMap<String, Value>);

// === impl StrictTools ===

impl StrictTools {
    /// Reads the field `tools` of a request, whose functions may be wrapped as in chat completions or bare as in
    /// Responses. What has another form is left for conversion to refuse.
    pub(in crate::chat) fn read(tools: Option<&Value>) -> Self {
        let functions = tools
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|tool| tool.get("function").unwrap_or(tool))
            .filter(|function| function["strict"] == true);
        let named = |function: &Value| {
            let name = function["name"].as_str()?;
            Some((name.to_owned(), function.get("parameters")?.clone()))
        };
        Self(functions.filter_map(named).collect())
    }

    /// The schema of a tool's arguments: `converted`, with what conversion left out of it.
    pub(super) fn parameters(&self, name: &str, converted: &Value) -> Value {
        self.0.get(name).map_or_else(|| converted.clone(), |sent| completed(sent, converted))
    }
}

/// A converted schema, with what conversion left out of the one that was sent.
pub(super) fn completed(sent: &Value, converted: &Value) -> Value {
    match (sent, converted) {
        (Value::Object(sent), Value::Object(converted)) => {
            let mut fields = converted.clone();
            for (name, value) in sent {
                let field = match converted.get(name) {
                    Some(converted) => completed(value, converted),
                    None => value.clone(),
                };
                fields.insert(name.clone(), field);
            }
            Value::Object(fields)
        }
        (Value::Array(sent), Value::Array(converted)) if sent.len() == converted.len() => {
            sent.iter().zip(converted).map(|(sent, converted)| completed(sent, converted)).collect()
        }
        _ => converted.clone(),
    }
}
