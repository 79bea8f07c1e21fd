//! One entry for each route and method.

use axum::http::{Method, StatusCode};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::answers::{ChatCompletion, ChatCompletionChunk, Event};
use super::{ChatCompletionRequest, SchemaOf};
use crate::http::{health, models};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const EVENTS: &str = "text/event-stream";

/// One route and method, as the document has it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: Tag,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) access: Access,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<SchemaOf>,
    pub(super) answers: Vec<Answer>,
    errors: Vec<StatusCode>,
}

/// Chapters of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Conversations.
    Chat,
    /// What is served.
    Models,
    /// How the server is.
    Operation,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Holders of a client's key.
    Key,
}

/// A parameter in the path.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    name: &'static str,
    description: &'static str,
}

/// An answer that is no refusal.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    /// Media types and what is in them.
    pub(super) content: Vec<(&'static str, SchemaOf)>,
}

/// All operations, in the document's order.
#[must_use]
pub fn all() -> Vec<Operation> {
    vec![
        Operation::new(Method::POST, "/v1/chat/completions", "createChatCompletion", Tag::Chat)
            .summary("Create chat completion")
            .description(
                "Answers a conversation. With `stream`, the answer comes as server-sent events: chunks, then `[DONE]`; \
                 an answer that fails on the way ends with an event that has an `error`, and without `[DONE]`.",
            )
            .key()
            .body::<ChatCompletionRequest>()
            .answer(
                200,
                "The answer, or its chunks.",
                vec![of::<ChatCompletion>(JSON), of::<Event<ChatCompletionChunk>>(EVENTS)],
            )
            .refuses(&[StatusCode::NOT_FOUND])
            .generates(),
        Operation::new(Method::GET, "/v1/models", "listModels", Tag::Models)
            .summary("List models")
            .description("All models, ready or not, each with a schema of its parameters.")
            .key()
            .answer(200, "The models.", vec![of::<models::ModelList>(JSON)]),
        Operation::new(Method::GET, "/v1/models/{id}", "retrieveModel", Tag::Models)
            .summary("Retrieve model")
            .description("One model. Its id may contain slashes.")
            .key()
            .path_parameter("id", "Id of the model.")
            .answer(200, "The model.", vec![of::<models::ModelObject>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        Operation::new(Method::GET, "/health/live", "live", Tag::Operation)
            .summary("Liveness")
            .description("Whether the process answers.")
            .answer(200, "It does.", vec![of::<String>(TEXT)]),
        Operation::new(Method::GET, "/health/ready", "ready", Tag::Operation)
            .summary("Readiness")
            .description("Whether a request sent now will be served, and each model's state.")
            .answer(200, "At least one model is ready.", vec![of::<health::Ready>(JSON)])
            .answer(503, "No model is ready, or the server stops.", vec![of::<health::Ready>(JSON)]),
        Operation::new(Method::GET, "/health/decode", "decode", Tag::Operation)
            .summary("Progress")
            .description("Whether every model that has work brings tokens.")
            .answer(200, "Tokens come, or there is no work.", vec![of::<health::Decode>(JSON)])
            .answer(503, "A model has work, and no token came for too long.", vec![of::<health::Decode>(JSON)]),
        Operation::new(Method::GET, "/metrics", "metrics", Tag::Operation)
            .summary("Metrics")
            .description("Counters, gauges and histograms in the Prometheus text format.")
            .answer(200, "The metrics.", vec![of::<String>(TEXT)]),
        Operation::new(Method::GET, "/openapi.json", "openapi", Tag::Operation)
            .summary("API document")
            .description("This document.")
            .answer(200, "An OpenAPI 3.1 document.", vec![of::<Value>(JSON)]),
    ]
}

/// A media type with the schema of what is in it.
fn of<T: JsonSchema>(kind: &'static str) -> (&'static str, SchemaOf) {
    (kind, SchemaGenerator::subschema_for::<T>)
}

// === impl Operation ===

impl Operation {
    fn new(method: Method, path: &'static str, id: &'static str, tag: Tag) -> Self {
        Self {
            method,
            path,
            id,
            tag,
            summary: "",
            description: "",
            access: Access::Open,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            errors: vec![StatusCode::INTERNAL_SERVER_ERROR],
        }
    }

    fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    /// It needs a client's key.
    fn key(self) -> Self {
        let refusals =
            [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS];
        Self { access: Access::Key, ..self }.refuses(&refusals)
    }

    /// It takes a JSON body.
    fn body<T: JsonSchema>(self) -> Self {
        let refusals = [
            StatusCode::BAD_REQUEST,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ];
        Self { body: Some(SchemaGenerator::subschema_for::<T>), ..self }.refuses(&refusals)
    }

    /// It makes a model compute, which can be impossible for now.
    fn generates(self) -> Self {
        self.refuses(&[StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE])
    }

    fn path_parameter(mut self, name: &'static str, description: &'static str) -> Self {
        self.parameters.push(Parameter { name, description });
        self
    }

    fn answer(
        mut self,
        status: u16,
        description: &'static str,
        content: Vec<(&'static str, SchemaOf)>,
    ) -> Self {
        self.answers.push(Answer { status, description, content });
        self
    }

    fn refuses(mut self, statuses: &[StatusCode]) -> Self {
        self.errors.extend(statuses);
        self
    }

    /// Statuses of refusals; a status may occur twice.
    pub(super) fn errors(&self) -> impl Iterator<Item = StatusCode> {
        self.errors.iter().copied()
    }
}

// === impl Parameter ===

impl Parameter {
    pub(super) fn describe(&self) -> Value {
        json!({
            "name": self.name,
            "in": "path",
            "required": true,
            "description": self.description,
            "schema": { "type": "string", "minLength": 1 },
        })
    }
}

// === impl Tag ===

impl Tag {
    /// All chapters, in the document's order.
    pub(super) const ALL: [Self; 3] = [Self::Chat, Self::Models, Self::Operation];

    /// The chapter's name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "Chat",
            Self::Models => "Models",
            Self::Operation => "Operation",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Chat => "Conversations, as OpenAI's Chat Completions API has them.",
            Self::Models => "What this server serves.",
            Self::Operation => "Health, metrics and this document.",
        }
    }
}
