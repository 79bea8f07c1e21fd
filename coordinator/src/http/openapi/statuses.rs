//! The statuses of refused requests.

use axum::http::StatusCode;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::answers::messages::AnthropicError;
use crate::http::error::ErrorBody;

/// In whose form an error is stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's, on its routes.
    Anthropic,
}

/// Each status that an error has, its name in the document, and when it is answered.
const STATUSES: [(StatusCode, &str, &str); 11] = [
    (
        StatusCode::BAD_REQUEST,
        "BadRequest",
        "A field, or the body, cannot be served; `param` names the field.",
    ),
    (
        StatusCode::UNAUTHORIZED,
        "Unauthorized",
        "No key was sent, or it is unknown, revoked or expired.",
    ),
    (StatusCode::FORBIDDEN, "Forbidden", "The key is switched off, or may not do this."),
    (
        StatusCode::NOT_FOUND,
        "NotFound",
        "Nothing has this path or id, such as a model that is not served.",
    ),
    (
        StatusCode::METHOD_NOT_ALLOWED,
        "MethodNotAllowed",
        "The path does not take this method; `Allow` names those it takes.",
    ),
    (StatusCode::REQUEST_TIMEOUT, "RequestTimeout", "The body did not arrive in time."),
    (
        StatusCode::PAYLOAD_TOO_LARGE,
        "ContentTooLarge",
        "The body is larger than this server's limit.",
    ),
    (
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "UnsupportedMediaType",
        "The body is of another kind, by its content type, than the route takes, or compressed.",
    ),
    (
        StatusCode::TOO_MANY_REQUESTS,
        "TooManyRequests",
        "Too many requests run or wait, or a limit of the key is reached.",
    ),
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "InternalServerError",
        "A fault of the server; its log has the cause under the request's id.",
    ),
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "ServiceUnavailable",
        "The model's workers are not all there, were lost, or the server stops.",
    ),
];

/// Reference to the response of a status.
#[must_use]
pub fn reference(status: StatusCode, shape: Shape) -> String {
    let name = STATUSES.iter().find(|(listed, _, _)| *listed == status).map(|(_, name, _)| *name);
    format!("#/components/responses/{}{}", shape.prefix(), name.unwrap_or("InternalServerError"))
}

/// Whether a status is in the table.
#[must_use]
pub fn is_listed(status: StatusCode) -> bool {
    STATUSES.iter().any(|(listed, _, _)| *listed == status)
}

/// The responses that operations refer to.
#[must_use]
pub fn components(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let schemas = [
        (Shape::OpenAi, generator.subschema_for::<ErrorBody>()),
        (Shape::Anthropic, generator.subschema_for::<AnthropicError>()),
    ];
    let mut components = Map::new();
    for (shape, schema) in schemas {
        for (status, name, description) in &STATUSES {
            let content = json!({ "application/json": { "schema": schema } });
            let mut response = json!({ "description": description, "content": content });
            if let Some((header, description, kind)) = header(*status) {
                response["headers"] =
                    json!({ header: { "description": description, "schema": { "type": kind } } });
            }
            components.insert(format!("{}{name}", shape.prefix()), response);
        }
    }
    components
}

fn header(status: StatusCode) -> Option<(&'static str, &'static str, &'static str)> {
    match status {
        StatusCode::UNAUTHORIZED => Some(("WWW-Authenticate", "`Bearer`.", "string")),
        StatusCode::METHOD_NOT_ALLOWED => Some(("Allow", "Methods that the path takes.", "string")),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Some(("Retry-After", "Seconds to wait before the next try.", "integer"))
        }
        _ => None,
    }
}

/// The table as a list, for the document's description.
#[must_use]
pub fn markdown() -> String {
    let line = |(status, _, description): &(StatusCode, &str, &str)| {
        format!("- {}: {description}", status.as_u16())
    };
    STATUSES.iter().map(line).collect::<Vec<_>>().join("\n")
}

// === impl Shape ===

impl Shape {
    /// What the names of its responses begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::OpenAi => "",
            Self::Anthropic => "Anthropic",
        }
    }
}
