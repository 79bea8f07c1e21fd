//! Schemas of the parameters that are objects.

use serde_json::{Value, json};

/// One message of a conversation.
pub(super) fn message() -> Value {
    let role = |role: &str| json!({ "type": "string", "const": role });
    let text = json!({
        "type": "object",
        "properties": { "type": { "type": "string", "const": "text" }, "text": { "type": "string" } },
        "required": ["type", "text"],
    });
    let content = json!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": text, "minItems": 1 }] });
    let plain = |name: &str| {
        json!({
            "type": "object",
            "properties": { "role": role(name), "content": content, "name": { "type": "string" } },
            "required": ["role", "content"],
        })
    };
    json!({ "oneOf": [
        plain("system"),
        plain("developer"),
        plain("user"),
        {
            "type": "object",
            "properties": {
                "role": role("assistant"),
                "content": content,
                "reasoning_content": { "type": "string" },
                "tool_calls": { "type": "array", "items": tool_call() },
                "prefix": {
                    "type": "boolean",
                    "default": false,
                    "description": "Continue this last message instead of answering it.",
                },
            },
            "required": ["role"],
        },
        {
            "type": "object",
            "properties": {
                "role": role("tool"),
                "content": content,
                "tool_call_id": { "type": "string" },
            },
            "required": ["role", "content", "tool_call_id"],
        },
    ] })
}

fn tool_call() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "type": { "type": "string", "const": "function" },
            "function": {
                "type": "object",
                "properties": { "name": { "type": "string" }, "arguments": { "type": "string" } },
                "required": ["name", "arguments"],
            },
        },
        "required": ["id", "type", "function"],
    })
}

/// `response_format`: one of several objects, told apart by `type`.
pub(super) fn response_format() -> Value {
    let format = |kind: &str, title: &str, needs: Option<(&str, Value)>| {
        let mut schema = json!({
            "title": title,
            "type": "object",
            "properties": { "type": { "type": "string", "const": kind } },
            "required": ["type"],
        });
        if let Some((name, property)) = needs {
            schema["properties"][name] = property;
            schema["required"] = json!(["type", name]);
        }
        schema
    };
    let json_schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "schema": { "type": "object" },
            "strict": { "type": "boolean" },
        },
        "required": ["name", "schema"],
        "examples": [{
            "name": "capital",
            "schema": {
                "type": "object",
                "properties": { "country": { "type": "string" }, "capital": { "type": "string" } },
                "required": ["country", "capital"],
                "additionalProperties": false,
            },
        }],
    });
    let regex = json!({ "type": "string", "description": "A regular expression for all of it." });
    let grammar =
        json!({ "type": "string", "description": "A grammar in llguidance's Lark dialect." });
    json!({
        "default": { "type": "text" },
        "oneOf": [
            format("text", "Text", None),
            format("json_object", "JSON", None),
            format("json_schema", "JSON Schema", Some(("json_schema", json_schema))),
            format("regex", "Regular expression", Some(("regex", regex))),
            format("grammar", "Grammar", Some(("grammar", grammar))),
        ],
    })
}

/// One of `tools`.
pub(super) fn tool() -> Value {
    let name = json!({ "type": "string", "pattern": "^[a-zA-Z0-9_-]+$", "maxLength": 128 });
    json!({
        "type": "object",
        "properties": {
            "type": { "type": "string", "const": "function" },
            "function": {
                "type": "object",
                "properties": {
                    "name": name,
                    "description": { "type": "string" },
                    "parameters": { "type": "object" },
                    "strict": { "type": "boolean" },
                },
                "required": ["name"],
            },
        },
        "required": ["type", "function"],
    })
}

/// `tool_choice`: a word, or the one function to call.
pub(super) fn tool_choice() -> Value {
    let named = json!({
        "title": "One function",
        "type": "object",
        "properties": {
            "type": { "type": "string", "const": "function" },
            "function": {
                "type": "object",
                "properties": { "name": { "type": "string" } },
                "required": ["name"],
            },
        },
        "required": ["type", "function"],
    });
    json!({ "oneOf": [{ "type": "string", "enum": ["none", "auto", "required"] }, named] })
}

/// A value of `tools`.
pub(super) fn example_tools() -> Value {
    json!([{
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": { "city": { "type": "string" } },
                "required": ["city"],
            },
        },
    }])
}
