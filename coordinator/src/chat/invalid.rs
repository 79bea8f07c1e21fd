//! What is wrong with a request, and the first steps of reading one that every API shares.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that label a request for the client's own books and cannot change an answer.
const WITHOUT_EFFECT: [&str; 6] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
];

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

/// The fields of a JSON body.
///
/// # Errors
/// [`Invalid`], with the position of what is not UTF-8 or JSON.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, Invalid> {
    let text = std::str::from_utf8(body).map_err(|error| Invalid {
        message: format!("the body is not UTF-8: invalid byte at offset {}", error.valid_up_to()),
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
    Ok(fields)
}

/// Fields as a request type.
///
/// # Errors
/// [`Invalid`], naming the field.
pub fn typed<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(untyped)
}

/// Refuses fields that are not `handled`, unless they cannot change an answer: none is dropped silently.
///
/// # Errors
/// [`Invalid`], naming the field.
pub fn refuse_unknown(fields: &Map<String, Value>, handled: &[&str]) -> Result<(), Invalid> {
    for (name, value) in fields {
        let known = handled.contains(&name.as_str()) || WITHOUT_EFFECT.contains(&name.as_str());
        if !known && !asks_for_nothing(value) {
            return Err(Invalid::unsupported(name, "is not supported by this server"));
        }
    }
    Ok(())
}

/// Whether a field may be left out: null, false, 0 or empty.
pub(super) fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Fields of objects, and the value of each that only says what is done anyway.
const DEFAULTS: [(&str, &str); 3] =
    [("allowed_callers", r#"["direct"]"#), ("context", r#""auto""#), ("mode", r#""standard""#)];

/// Refuses fields of an object that are not in `known` and ask for something.
pub(super) fn check_object(
    value: Option<&Value>,
    path: &str,
    known: &[&str],
) -> Result<(), Invalid> {
    let Some(Value::Object(fields)) = value else { return Ok(()) };
    let asks = |(name, value): &(&String, &Value)| {
        let (name, value) = (name.as_str(), *value);
        let is_default = || DEFAULTS.contains(&(name, value.to_string().as_str()));
        !known.contains(&name) && !asks_for_nothing(value) && !is_default()
    };
    match fields.iter().find(asks) {
        Some((name, _)) => Err(Invalid::unsupported(
            &format!("{path}.{name}"),
            "is not supported by this server; omit it",
        )),
        None => Ok(()),
    }
}

/// An error of a request type, with the path to the field.
fn untyped(error: serde_path_to_error::Error<serde_json::Error>) -> Invalid {
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
const MENTIONS: [(&str, &str); 15] = [
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
    ("Invalid json schema", "response_format"),
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
