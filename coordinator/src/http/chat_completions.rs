//! `POST /v1/chat/completions`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};

use super::{Context, Error, body, sse};
use crate::chat;
use crate::chat::request::ChatRequest;

/// Answers a chat request, as a stream or as a whole.
pub async fn create(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let request = ChatRequest::from_slice(&bytes).map_err(chat::Error::from)?;
    drop(bytes);
    request.record_on_span();
    let answer = context.chat.start(request).await?;
    if answer.is_stream() {
        Ok(sse::response(answer))
    } else {
        Ok(Json(answer.collect().await?).into_response())
    }
}
