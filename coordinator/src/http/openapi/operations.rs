//! One entry for each route and method: here what an entry consists of, in the modules the entries themselves.

mod admin;
mod batches;
mod chat;
mod messages;
mod responses;
mod server;

use axum::http::{Method, StatusCode};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::SchemaOf;
use super::statuses::Shape;

const JSON: &str = "application/json";
const FORM: &str = "multipart/form-data";
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
    /// Media type of the body, and what is in it.
    pub(super) body: Option<(&'static str, SchemaOf)>,
    pub(super) answers: Vec<Answer>,
    errors: Vec<StatusCode>,
}

/// Chapters of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Conversations.
    Chat,
    /// Prompts without a conversation.
    Completions,
    /// Conversations in OpenAI's newer form.
    Responses,
    /// Conversations in Anthropic's form.
    Messages,
    /// What batches read and write.
    Files,
    /// Requests in files.
    Batches,
    /// Text as token ids.
    Tokenizer,
    /// What is served.
    Models,
    /// How the server is.
    Operation,
    /// Status, keys and usage.
    Admin,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Holders of a client's key.
    Key,
    /// The holder of the admin key.
    AdminKey,
}

/// A parameter in the path or the query.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: &'static str,
    place: Place,
    description: &'static str,
    schema: Value,
}

/// Where a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Path,
    Query,
}

/// An answer that is no refusal.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    /// Media types and what is in them.
    pub(super) content: Vec<(&'static str, SchemaOf)>,
}

/// All operations of clients, in the document's order.
#[must_use]
pub fn all() -> Vec<Operation> {
    [chat::all(), responses::all(), messages::all(), batches::all(), server::all()].concat()
}

/// The operations of whoever runs the server.
#[must_use]
pub fn of_admin() -> Vec<Operation> {
    admin::all()
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

    /// It needs the admin key.
    fn admin_key(self) -> Self {
        Self { access: Access::AdminKey, ..self }.refuses(&[StatusCode::UNAUTHORIZED])
    }

    /// It takes a JSON body.
    fn body<T: JsonSchema>(self) -> Self {
        self.body_of::<T>(JSON)
    }

    /// It takes a form with a file.
    fn form<T: JsonSchema>(self) -> Self {
        self.body_of::<T>(FORM)
    }

    fn body_of<T: JsonSchema>(self, kind: &'static str) -> Self {
        let refusals = [
            StatusCode::BAD_REQUEST,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ];
        Self { body: Some(of::<T>(kind)), ..self }.refuses(&refusals)
    }

    /// It makes a model compute, which can be impossible for now.
    fn generates(self) -> Self {
        self.refuses(&[StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE])
    }

    fn path_parameter(mut self, name: &'static str, description: &'static str) -> Self {
        let schema = json!({ "type": "string", "minLength": 1 });
        self.parameters.push(Parameter { name, place: Place::Path, description, schema });
        self
    }

    /// A parameter that may be left out.
    fn query_parameter(
        mut self,
        name: &'static str,
        description: &'static str,
        schema: Value,
    ) -> Self {
        self.parameters.push(Parameter { name, place: Place::Query, description, schema });
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

    /// In whose form it states refusals.
    pub(super) fn shape(&self) -> Shape {
        if self.tag == Tag::Messages { Shape::Anthropic } else { Shape::OpenAi }
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
            "in": match self.place {
                Place::Path => "path",
                Place::Query => "query",
            },
            "required": self.place == Place::Path,
            "description": self.description,
            "schema": self.schema,
        })
    }
}

// === impl Tag ===

impl Tag {
    /// All chapters, in the document's order.
    pub(super) const ALL: [Self; 10] = [
        Self::Chat,
        Self::Completions,
        Self::Responses,
        Self::Messages,
        Self::Files,
        Self::Batches,
        Self::Tokenizer,
        Self::Models,
        Self::Operation,
        Self::Admin,
    ];

    /// The chapter's name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "Chat",
            Self::Completions => "Completions",
            Self::Responses => "Responses",
            Self::Messages => "Messages",
            Self::Files => "Files",
            Self::Batches => "Batches",
            Self::Tokenizer => "Tokenizer",
            Self::Models => "Models",
            Self::Operation => "Operation",
            Self::Admin => "Admin",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Chat => "Conversations, as OpenAI's Chat Completions API has them.",
            Self::Completions => "Prompts without a template, as OpenAI's legacy API has them.",
            Self::Responses => "Conversations, as OpenAI's Responses API has them.",
            Self::Messages => {
                "Conversations, as Anthropic's Messages API has them; the key may come in `x-api-key`."
            }
            Self::Files => "What batches read and write, as OpenAI's Files API has it.",
            Self::Batches => {
                "Requests in files, answered when nobody else waits, as OpenAI's Batch API has it."
            }
            Self::Tokenizer => "Text to token ids and back, as vLLM has it.",
            Self::Models => "What this server serves.",
            Self::Operation => "Health, metrics and this document.",
            Self::Admin => "Status, keys and usage, for whoever runs the server.",
        }
    }
}
