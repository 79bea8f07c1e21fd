//! A message as the JSON form of the same request.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use switchyard_proto::inference::response_format::Kind;
use switchyard_proto::inference::{self as pb, Message, ResponseFormat, Tool, ToolCall};

use crate::chat::invalid::{Invalid, InvalidCode};
use crate::chat::request::ChatRequest;

/// Converts and checks a message, as the HTTP API checks a body.
///
/// # Errors
/// [`Invalid`], naming the field as the HTTP API does.
pub fn convert(message: pb::ChatRequest, stream: bool) -> Result<ChatRequest, Invalid> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    set("model", Some(message.model.into()));
    set("messages", Some(message.messages.into_iter().map(message_fields).collect()));
    set("temperature", number("temperature", message.temperature)?);
    set("top_p", number("top_p", message.top_p)?);
    set("max_tokens", message.max_tokens.map(Value::from));
    set("stop", non_empty(message.stop.into()));
    set("seed", message.seed.map(Value::from));
    set("logprobs", message.logprobs.map(Value::from));
    set("top_logprobs", message.top_logprobs.map(Value::from));
    set("thinking", message.thinking.map(thinking));
    set("reasoning_effort", non_empty(message.reasoning_effort.into()));
    set("response_format", message.response_format.map(response_format).transpose()?);
    let tools = message.tools.into_iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    set("tools", non_empty(Value::Array(tools)));
    set("tool_choice", tool_choice(&message.tool_choice, &message.tool_choice_function)?);
    set("ignore_eos", Some(message.ignore_eos.into()));
    set("presence_penalty", number("presence_penalty", message.presence_penalty)?);
    set("frequency_penalty", number("frequency_penalty", message.frequency_penalty)?);
    set("top_k", message.top_k.map(Value::from));
    set("min_p", number("min_p", message.min_p)?);
    set("logit_bias", logit_bias(message.logit_bias)?);
    set("n", message.n.map(Value::from));
    set("parallel_tool_calls", message.parallel_tool_calls.map(Value::from));
    set("user", non_empty(message.user.into()));
    set("metadata", non_empty(message.metadata.into_iter().collect()));
    set("stream", Some(stream.into()));
    ChatRequest::from_fields(fields)
}

fn thinking(thinking: bool) -> Value {
    json!({ "type": if thinking { "enabled" } else { "disabled" } })
}

fn response_format(format: ResponseFormat) -> Result<Value, Invalid> {
    match format.kind {
        None => Err(Invalid::new(
            InvalidCode::Missing,
            "response_format",
            "has no kind; set one, or leave it out for free text",
        )),
        Some(Kind::JsonObject(pb::JsonObject {})) => Ok(json!({ "type": "json_object" })),
        Some(Kind::JsonSchema(pb::JsonSchema { name, schema_json, strict })) => {
            let schema = json("response_format.json_schema.schema_json", &schema_json)?;
            let schema = json!({ "name": name, "schema": schema, "strict": strict });
            Ok(json!({ "type": "json_schema", "json_schema": schema }))
        }
        Some(Kind::Regex(regex)) => Ok(json!({ "type": "regex", "regex": regex })),
        Some(Kind::Grammar(grammar)) => Ok(json!({ "type": "grammar", "grammar": grammar })),
    }
}

fn logit_bias(bias: BTreeMap<u32, f32>) -> Result<Option<Value>, Invalid> {
    let mut fields = Map::new();
    for (token, bias) in bias {
        fields.extend(number("logit_bias", Some(bias))?.map(|bias| (token.to_string(), bias)));
    }
    Ok(non_empty(fields.into()))
}

fn json(param: &str, text: &str) -> Result<Value, Invalid> {
    serde_json::from_str(text)
        .map_err(|error| Invalid::new(InvalidCode::Json, param, &format!("is not JSON: {error}")))
}

/// JSON has no way to write what is not finite.
fn number(name: &str, value: Option<f32>) -> Result<Option<Value>, Invalid> {
    match value {
        Some(value) if !value.is_finite() => {
            Err(Invalid::new(InvalidCode::Value, name, "must be a finite number"))
        }
        value => Ok(value.map(Value::from)),
    }
}

/// Protobuf cannot tell an empty string, list or map from an absent one.
fn non_empty(value: Value) -> Option<Value> {
    let is_empty = match &value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    };
    (!is_empty).then_some(value)
}

fn message_fields(message: Message) -> Value {
    let mut fields = Map::new();
    let is_assistant = message.role == "assistant";
    let calls: Value = message.tool_calls.into_iter().map(tool_call).collect();
    let calls = non_empty(calls);
    // An assistant message that only calls tools has no content.
    if !(is_assistant && calls.is_some() && message.content.is_empty()) {
        fields.insert("content".to_owned(), message.content.into());
    }
    fields.insert("role".to_owned(), message.role.into());
    for (name, value) in [
        ("tool_calls", calls),
        ("reasoning_content", non_empty(message.reasoning_content.into())),
        ("tool_call_id", non_empty(message.tool_call_id.into())),
        ("prefix", message.prefix.then_some(Value::Bool(true))),
    ] {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    }
    Value::Object(fields)
}

fn tool_call(call: ToolCall) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    json!({ "id": call.id, "type": "function", "function": function })
}

fn tool((index, tool): (usize, Tool)) -> Result<Value, Invalid> {
    let mut function = json!({ "name": tool.name, "description": tool.description });
    if !tool.parameters_json.is_empty() {
        let param = format!("tools[{index}].parameters_json");
        function["parameters"] = json(&param, &tool.parameters_json)?;
    }
    if tool.strict {
        function["strict"] = true.into();
    }
    Ok(json!({ "type": "function", "function": function }))
}

fn tool_choice(mode: &str, function: &str) -> Result<Option<Value>, Invalid> {
    match (mode, function) {
        ("", "") => Ok(None),
        (mode, "") => Ok(Some(mode.into())),
        ("", name) => Ok(Some(json!({ "type": "function", "function": { "name": name } }))),
        (_, _) => Err(Invalid::new(
            InvalidCode::Value,
            "tool_choice_function",
            "excludes `tool_choice`; set one of them",
        )),
    }
}
