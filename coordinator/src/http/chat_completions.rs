//! `POST /v1/chat/completions`.
//!
//! Usage follows what the client expects: with `stream_options.include_usage`, OpenAI's form (every chunk has
//! `"usage": null`, and one more chunk with `"choices": []` carries it, so that clients which add up chunks count it
//! once); without, and always in compatibility with DeepSeek, its form (the last chunk with `finish_reason` carries it).

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;

use super::error::OpenAi;
use super::{Context, Error, body, sse};
use crate::auth::Lease;
use crate::chat;
use crate::chat::request::ChatRequest;

/// Answers a chat request, as a stream or as a whole.
pub async fn create(
    State(context): State<Context>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let request = ChatRequest::from_slice(&bytes).map_err(chat::Error::from)?;
    drop(bytes);
    sse::answer::<ChatCompletionRequest, OpenAi>(&context.chat, request.paid_by(lease)).await
}
