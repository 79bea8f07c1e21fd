//! `POST /v1/completions`, OpenAI's legacy form.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::error::OpenAi;
use super::{Context, Error, body, sse};
use crate::auth::Lease;
use crate::chat;
use crate::chat::completion::CompletionRequest;
use crate::chat::protocol::Request;

/// Continues a prompt, as a stream or as a whole.
pub async fn create(
    State(context): State<Context>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let request = Request::<CompletionRequest>::from_slice(&bytes).map_err(chat::Error::from)?;
    drop(bytes);
    sse::answer::<CompletionRequest, OpenAi>(&context.chat, request.paid_by(lease)).await
}
