//! The body of a chat request: which fields we know, which we refuse, and what is wrong with the rest.
//!
//! No field is dropped silently. A field either does something, or only concerns the client's bookkeeping
//! (such as `user`), or asks for nothing (null, false, 0, empty), or is refused by name.

use deepseek_recipe::openai::chat_completion::request::{
    ChatCompletionRequest, ChatCompletionResponseFormat,
};
use serde_json::{Map, Value};

use crate::metric_definitions as names;

#[cfg(test)]
mod tests;

/// Fields that the request type knows.
const HANDLED: [&str; 20] = [
    "messages",
    "model",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "response_format",
    "tools",
    "tool_choice",
    "reasoning_effort",
    "thinking",
    "parallel_tool_calls",
];

/// Fields that label a request for the client's own books and cannot change an answer.
const WITHOUT_EFFECT: [&str; 6] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
];

/// OpenAI's newer name of `max_tokens`.
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";
/// Generate up to `max_tokens` even past the end of the answer; load generators use it.
const IGNORE_EOS: &str = "ignore_eos";

/// A chat request whose fields are known and typed. Values are checked against each other by conversion.
#[derive(Debug)]
pub struct ChatRequest {
    /// The family's own fields.
    pub body: ChatCompletionRequest,
    /// Whether the end-of-answer token does not end the answer.
    pub ignore_eos: bool,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// For the reader of the error.
    pub message: String,
    /// The field, as a path, when it is known.
    pub param: Option<String>,
    /// For the program that gets the error.
    pub code: InvalidCode,
}

/// Kinds of invalid requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidCode {
    /// Not UTF-8.
    Utf8,
    /// Not JSON.
    Json,
    /// A required field is not there.
    Missing,
    /// A field has another type.
    Type,
    /// A field has an impossible value.
    Value,
    /// A field, or its value, asks for something this server does not do.
    Unsupported,
}

// === impl ChatRequest ===

impl ChatRequest {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// [`Invalid`], with the position of what is not UTF-8 or JSON, or the field that is wrong.
    pub fn from_slice(body: &[u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(body).map_err(|error| Invalid {
            message: format!(
                "the body is not UTF-8: invalid byte at offset {}",
                error.valid_up_to()
            ),
            param: None,
            code: InvalidCode::Utf8,
        })?;
        let value = serde_json::from_str(text).map_err(|error| Invalid {
            message: format!("the body is not JSON: {error}"),
            param: None,
            code: InvalidCode::Json,
        })?;
        let Value::Object(fields) = value else {
            return Err(Invalid {
                message: "the body must be a JSON object".to_owned(),
                param: None,
                code: InvalidCode::Type,
            });
        };
        Self::from_fields(fields)
    }

    /// Reads the fields of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, Invalid> {
        rename_max_completion_tokens(&mut fields)?;
        let ignore_eos = match fields.shift_remove(IGNORE_EOS) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(ignore_eos)) => ignore_eos,
            Some(_) => {
                return Err(Invalid::new(InvalidCode::Type, IGNORE_EOS, "must be a boolean"));
            }
        };
        for (name, value) in &fields {
            let known = HANDLED.contains(&name.as_str()) || WITHOUT_EFFECT.contains(&name.as_str());
            if !known && !asks_for_nothing(value) {
                return Err(Invalid::unsupported(name, "is not supported by this server"));
            }
        }
        let body = serde_path_to_error::deserialize(Value::Object(fields)).map_err(typed)?;
        refuse_unsupported(&body)?;
        Ok(Self { body, ignore_eos })
    }

    /// Notes the request's parameters on the current span, under their OpenTelemetry names.
    pub(crate) fn record_on_span(&self) {
        let body = &self.body;
        let span = tracing::Span::current();
        span.record("gen_ai.operation.name", names::GEN_AI_OPERATION_CHAT);
        span.record("gen_ai.provider.name", names::GEN_AI_PROVIDER_DEEPSEEK);
        span.record("gen_ai.request.model", body.model.as_str());
        span.record("gen_ai.request.max_tokens", body.max_tokens);
        span.record("gen_ai.request.temperature", body.temperature);
        span.record("gen_ai.request.top_p", body.top_p);
        span.record("gen_ai.request.seed", body.seed);
        span.record("gen_ai.request.stream", body.stream);
    }
}

fn rename_max_completion_tokens(fields: &mut Map<String, Value>) -> Result<(), Invalid> {
    let Some(newer) = fields.shift_remove(MAX_COMPLETION_TOKENS).filter(|value| !value.is_null())
    else {
        return Ok(());
    };
    match fields.get("max_tokens") {
        None | Some(Value::Null) => {
            fields.insert("max_tokens".to_owned(), newer);
            Ok(())
        }
        Some(older) if *older == newer => Ok(()),
        Some(_) => Err(Invalid::new(
            InvalidCode::Value,
            MAX_COMPLETION_TOKENS,
            "differs from `max_tokens`; set one of them",
        )),
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Refuses what the request type can express, but what would have no effect, or less than it promises.
fn refuse_unsupported(body: &ChatCompletionRequest) -> Result<(), Invalid> {
    for (name, penalty) in
        [("presence_penalty", body.presence_penalty), ("frequency_penalty", body.frequency_penalty)]
    {
        // Values out of range get the error about the range.
        if penalty.is_some_and(|penalty| penalty != 0.0 && (-2.0..=2.0).contains(&penalty)) {
            return Err(Invalid::unsupported(name, "is not supported by this server; omit it"));
        }
    }
    let constrained = match &body.response_format {
        Some(ChatCompletionResponseFormat::JsonSchema { .. }) => Some("json_schema"),
        Some(ChatCompletionResponseFormat::Regex { .. }) => Some("regex"),
        Some(ChatCompletionResponseFormat::JsonObject | ChatCompletionResponseFormat::Text)
        | None => None,
    };
    if let Some(kind) = constrained {
        let why =
            format!("of type '{kind}' needs constrained decoding, which this server does not do");
        return Err(Invalid::unsupported("response_format", &why));
    }
    let tools = body.tools.as_deref().unwrap_or_default();
    if let Some(index) = tools.iter().position(|tool| tool.function.strict == Some(true)) {
        let param = format!("tools[{index}].function.strict");
        let why = "needs constrained decoding, which this server does not do";
        return Err(Invalid::unsupported(&param, why));
    }
    if body.parallel_tool_calls == Some(false) && !tools.is_empty() {
        return Err(Invalid::unsupported("parallel_tool_calls", "cannot be switched off"));
    }
    if body.thinking.as_ref().is_some_and(|thinking| thinking.budget_tokens.is_some()) {
        return Err(Invalid::unsupported(
            "thinking.budget_tokens",
            "is not supported by this server",
        ));
    }
    Ok(())
}

/// An error of the request type, with the path to the field.
fn typed(error: serde_path_to_error::Error<serde_json::Error>) -> Invalid {
    let path = error.path().to_string();
    let message = error.into_inner().to_string();
    let path = (path != ".").then_some(path);
    let (code, param) = match quoted_after(&message, "missing field `", '`') {
        Some(field) => {
            let field = path.map_or_else(|| field.to_owned(), |path| format!("{path}.{field}"));
            (InvalidCode::Missing, Some(field))
        }
        None if message.starts_with("invalid type") => (InvalidCode::Type, path),
        None => (InvalidCode::Value, path),
    };
    let message = match &param {
        Some(param) if code != InvalidCode::Missing => format!("`{param}`: {message}"),
        Some(param) => format!("`{param}` is required"),
        None => message,
    };
    Invalid { message, param, code }
}

// === impl Invalid ===

impl Invalid {
    pub(crate) fn new(code: InvalidCode, param: &str, what: &str) -> Self {
        Self { message: format!("`{param}` {what}"), param: Some(param.to_owned()), code }
    }

    pub(crate) fn unsupported(param: &str, what: &str) -> Self {
        Self::new(InvalidCode::Unsupported, param, what)
    }

    /// Takes a message of the recipe's conversion and finds the field that it speaks of.
    pub(super) fn from_detail(detail: String) -> Self {
        let param = quoted_after(&detail, "Invalid '", '\'')
            .or_else(|| {
                // "Invalid n value (…)" and "Invalid top_logprobs and logprobs value, …"
                let (name, rest) = detail.strip_prefix("Invalid ")?.split_once(' ')?;
                (rest.starts_with("value") || rest.starts_with("and ")).then_some(name)
            })
            .or_else(|| {
                MENTIONS.iter().find(|(text, _)| detail.contains(text)).map(|(_, param)| *param)
            })
            .map(str::to_owned);
        Self { message: detail, param, code: InvalidCode::Value }
    }
}

/// Words of the recipe's messages, and the field that each is about.
const MENTIONS: [(&str, &str); 14] = [
    ("Stop string array", "stop"),
    ("stream_options", "stream_options"),
    ("'response_format'", "response_format"),
    ("response_format", "response_format"),
    ("tool_choice", "tool_choice"),
    ("'tool_call'", "tool_choice"),
    ("tool_call_id", "messages"),
    ("tool_calls", "messages"),
    ("input messages", "messages"),
    ("completion message", "messages"),
    ("prefix", "messages"),
    ("reasoning_content", "messages"),
    ("schema for function", "tools"),
    ("Tool names", "tools"),
];

fn quoted_after<'a>(text: &'a str, before: &str, until: char) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(until).map(|(quoted, _)| quoted)
}

// === impl InvalidCode ===

impl InvalidCode {
    /// The `code` of OpenAI's error object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "invalid_utf8",
            Self::Json => "invalid_json",
            Self::Missing => "missing_required_parameter",
            Self::Type => "invalid_type",
            Self::Value => "invalid_value",
            Self::Unsupported => "unsupported_parameter",
        }
    }
}
