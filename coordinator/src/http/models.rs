//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::{Context, Error};
use crate::chat::Served;

/// Who owns the served models, as far as a client is concerned.
const OWNER: &str = "switchyard";

/// The served models.
#[derive(Debug, Serialize)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// One served model.
#[derive(Debug, Serialize)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Longest sequence in tokens; the field that vLLM's clients read.
    max_model_len: u32,
}

/// All models, ready or not: a model does not vanish from a client's list while it recovers.
pub async fn list(State(context): State<Context>) -> Json<ModelList> {
    let data = context.chat.models().map(ModelObject::from).collect();
    Json(ModelList { object: "list", data })
}

/// One model.
pub async fn retrieve(
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, Error> {
    Ok(Json(ModelObject::from(context.chat.model(&id)?.as_ref())))
}

impl From<&Served> for ModelObject {
    fn from(served: &Served) -> Self {
        Self {
            id: served.model.id().to_owned(),
            object: "model",
            created: served.model.created(),
            owned_by: OWNER,
            max_model_len: served.context_length(),
        }
    }
}
