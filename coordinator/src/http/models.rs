//! `GET /v1/models` and `GET /v1/models/{id}`: OpenAI's fields, and what a client needs to offer a model to a person.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{Context, Error};
use crate::auth::Account;
use crate::chat::parameters::{self, Facts};
use crate::chat::{self, Served};
use crate::options::ModelOptions;

#[cfg(test)]
mod tests;

/// Who owns the served models, as far as a client is concerned.
const OWNER: &str = "switchyard";

/// What people call the models, by id.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    cards: IndexMap<String, Card>,
}

#[derive(Clone, Debug)]
struct Card {
    title: String,
    description: Option<String>,
}

/// The served models.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    /// `list`.
    object: &'static str,
    /// The models, in the order of the server's configuration.
    data: Vec<ModelObject>,
}

/// One served model.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelObject {
    /// What requests name it by.
    id: String,
    /// `model`.
    object: &'static str,
    /// When its configuration was written, in Unix seconds.
    created: u64,
    /// `switchyard`.
    owned_by: &'static str,
    /// What people call it; its id unless the server was told more.
    title: String,
    /// What it is.
    description: Option<String>,
    /// Longest sequence, prompt and answer together, in tokens.
    context_length: u32,
    /// The same; the field that vLLM's clients read.
    max_model_len: u32,
    /// What it can be asked for.
    capabilities: Capabilities,
    /// JSON Schema of its parameters, for drawing a form.
    #[schemars(with = "serde_json::Map<String, Value>")]
    form_schema: Value,
}

/// What a model can be asked for.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Capabilities {
    /// Answers conversations.
    chat: bool,
    /// Sends answers in pieces.
    streaming: bool,
    /// Reasons before it answers.
    thinking: bool,
    /// Calls tools.
    tools: bool,
    /// Follows a schema, a regular expression or a grammar.
    structured_output: bool,
    /// Reports log probabilities.
    logprobs: bool,
    /// Gives several answers to one request.
    multiple_choices: bool,
    /// Reads images.
    vision: bool,
}

/// What every model of the V4 family can be asked for.
const V4: Capabilities = Capabilities {
    chat: true,
    streaming: true,
    thinking: true,
    tools: true,
    structured_output: true,
    logprobs: true,
    multiple_choices: true,
    vision: false,
};

/// The models that the key may use, ready or not: a model does not vanish from a client's list while it recovers.
pub async fn list(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
) -> Json<ModelList> {
    let models = context.chat.models().filter(|it| account.check_model(it.model.id()).is_ok());
    let data = models.map(|served| context.model_object(served)).collect();
    Json(ModelList { object: "list", data })
}

/// One model.
pub async fn retrieve(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, Error> {
    let served = context.chat.model(&id)?;
    account.check_model(&id).map_err(chat::Error::from)?;
    Ok(Json(context.model_object(served)))
}

// === impl Catalog ===

impl Catalog {
    /// What the options say about the models.
    #[must_use]
    pub fn new(models: &[ModelOptions]) -> Self {
        let card = |model: &ModelOptions| {
            let title = model.title.clone().unwrap_or_else(|| model.id.clone());
            (model.id.clone(), Card { title, description: model.description.clone() })
        };
        Self { cards: models.iter().map(card).collect() }
    }
}

// === impl Context ===

impl Context {
    fn model_object(&self, served: &Served) -> ModelObject {
        let model = &served.model;
        let card = self.catalog.cards.get(model.id());
        let title = card.map_or_else(|| model.id().to_owned(), |card| card.title.clone());
        // Not the model's own limit: its group may have room for less.
        let context_length = served.context_length();
        let facts = Facts {
            context_length: Some(context_length),
            default_thinking: Some(model.default_thinking()),
            compat: self.chat.compat(),
        };
        ModelObject {
            id: model.id().to_owned(),
            object: "model",
            created: model.created(),
            owned_by: OWNER,
            form_schema: parameters::form_schema(&title, &facts),
            title,
            description: card.and_then(|card| card.description.clone()),
            context_length,
            max_model_len: context_length,
            capabilities: V4,
        }
    }
}
