//! A model's tokenizer: text to token ids and back, and the file itself.
//!
//! The forms are vLLM's, whose paths without `/v1` are served, too. A prompt of text is what `/v1/completions` would
//! make of it; `messages`, with everything else that a chat request may have, what `/v1/chat/completions` would.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::handler::Handler as _;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Context, Error, body, models};
use crate::chat;
use crate::chat::invalid::{self, Invalid, InvalidCode};
use crate::chat::request::ChatRequest;

/// Whether the token that begins a sequence comes first.
const ADD_SPECIAL_TOKENS: &str = "add_special_tokens";
/// What follows a model's id in the path of its tokenizer.
const TOKENIZER: &str = "/tokenizer";

/// Text to tokenize.
#[derive(Debug, Deserialize)]
struct Text {
    model: String,
    prompt: String,
    add_special_tokens: Option<bool>,
}

/// Token ids to turn back into text.
#[derive(Debug, Deserialize)]
struct TokenIds {
    model: String,
    tokens: Vec<u32>,
}

/// Token ids of a prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Tokens {
    /// In the order of the text.
    tokens: Vec<u32>,
    /// How many there are.
    count: usize,
    /// Longest sequence of the model, prompt and answer together.
    max_model_len: u32,
}

/// The text of token ids.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Prompt {
    /// Special tokens are spelled out.
    prompt: String,
}

/// The token ids of a prompt.
pub async fn tokenize(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let fields = fields(&context, &headers, body).await?;
    let is_chat = fields.get("messages").is_some_and(|messages| !messages.is_null());
    let (model, tokens) =
        if is_chat { chat(&context, fields).await? } else { text(&context, fields).await? };
    let max_model_len = context.chat.model(&model)?.context_length();
    Ok(Json(Tokens { count: tokens.len(), tokens, max_model_len }).into_response())
}

async fn text(
    context: &Context,
    fields: Map<String, Value>,
) -> Result<(String, Vec<u32>), chat::Error> {
    invalid::refuse_unknown(&fields, &["model", "prompt", ADD_SPECIAL_TOKENS])?;
    let Text { model, prompt, add_special_tokens } = invalid::typed(fields)?;
    let begin = add_special_tokens.unwrap_or(true);
    let tokens = context.chat.tokenize_text(&model, prompt, begin).await?;
    Ok((model, tokens))
}

async fn chat(
    context: &Context,
    mut fields: Map<String, Value>,
) -> Result<(String, Vec<u32>), chat::Error> {
    if fields.shift_remove(ADD_SPECIAL_TOKENS).is_some_and(|add| add == true) {
        let what = "excludes `messages`: the template has the special tokens already";
        return Err(Invalid::new(InvalidCode::Value, ADD_SPECIAL_TOKENS, what).into());
    }
    let request = ChatRequest::from_fields(fields)?;
    let model = request.body.model.clone();
    let tokens = context.chat.tokenize(request).await?;
    Ok((model, tokens))
}

/// The text of token ids.
pub async fn detokenize(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let fields = fields(&context, &headers, body).await?;
    invalid::refuse_unknown(&fields, &["model", "tokens"]).map_err(chat::Error::from)?;
    let TokenIds { model, tokens } = invalid::typed(fields).map_err(chat::Error::from)?;
    let prompt = context.chat.detokenize(&model, tokens).await?;
    Ok(Json(Prompt { prompt }).into_response())
}

/// `GET /v1/models/{id}`, and below it `/tokenizer`: the id may have slashes, so that one route must match both.
pub async fn model_or_tokenizer(
    State(context): State<Context>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let of_tokenizer = path.strip_suffix(TOKENIZER);
    match of_tokenizer.filter(|_| context.chat.model(&path).is_err()) {
        Some(id) => {
            let file = context.chat.model(id)?.model.tokenizer_json().clone();
            Ok(([(CONTENT_TYPE, "application/json")], file).into_response())
        }
        None => Ok(models::retrieve.call(request, context).await),
    }
}

async fn fields(
    context: &Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, Error> {
    let bytes = body::read(headers, body, &context.limits).await?;
    Ok(invalid::object(&bytes).map_err(chat::Error::from)?)
}
