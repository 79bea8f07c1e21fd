//! `POST /v1/messages` and `POST /v1/messages/count_tokens`, Anthropic's Messages.
//!
//! The routes have a layer of their own, which takes a key from `x-api-key`, too, and states all errors in Anthropic's
//! form. `anthropic-version` and `anthropic-beta` are accepted and change nothing.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, post};
use axum::{Extension, Json, Router};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use super::error::{Dialect, Report};
use super::observe::REQUEST_ID;
use super::routes::Routes;
use super::{
    Context, Error, authenticate, body, method_not_allowed, no_route, panicked, sse, standby,
};
use crate::auth::Lease;
use crate::chat;
use crate::chat::messages::Messages;

/// Header that clients of this dialect send their key in.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Header that clients of this dialect look for the request id in.
const DIALECT_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Errors as `{"type": "error", "error": {"type", "message"}}`.
#[derive(Clone, Copy, Debug)]
pub struct Anthropic;

/// The answer to a request to count.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TokenCount {
    /// Tokens of the prompt.
    input_tokens: usize,
}

/// The routes, which need a key.
pub(super) fn router(context: Context) -> Router<Context> {
    routes()
        .into_router()
        // What is under it but not there is stated in the same form.
        .route("/v1/messages/{*rest}", any(no_route))
        .route_layer(from_fn_with_state(context.accounts, authenticate::authenticate))
        .route_layer(from_fn_with_state(context.standing, standby::refuse))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(speak))
}

pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v1/messages", post(create).fallback(method_not_allowed))
        .route("/v1/messages/count_tokens", post(count_tokens).fallback(method_not_allowed))
}

/// Answers a request, as a stream or as a whole.
async fn create(
    State(context): State<Context>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let request = Messages::from_slice(&bytes).map_err(chat::Error::from)?;
    drop(bytes);
    sse::answer::<Messages, Anthropic>(&context.chat, request.paid_by(lease)).await
}

/// Tokens of the prompt that a request would become.
async fn count_tokens(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let request = Messages::from_slice(&bytes).map_err(chat::Error::from)?;
    drop(bytes);
    let input_tokens = context.chat.tokenize(request).await?.len();
    Ok(Json(TokenCount { input_tokens }).into_response())
}

/// The layer: what a client of this dialect says and hears beside the bodies.
async fn speak(mut request: Request, next: Next) -> Response {
    use_api_key(request.headers_mut());
    let id = request.headers().get(REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if let Some(report) = response.extensions_mut().remove::<Report>() {
        response = restate(response, &report, id.as_ref());
    }
    if let Some(id) = id {
        response.headers_mut().insert(DIALECT_REQUEST_ID, id);
    }
    response
}

/// Lets `x-api-key` stand for a Bearer key where there is none.
fn use_api_key(headers: &mut HeaderMap) {
    if headers.contains_key(AUTHORIZATION) {
        return;
    }
    let Some(key) = headers.remove(API_KEY) else { return };
    let bearer = [b"Bearer ", key.as_bytes()].concat();
    if let Ok(mut bearer) = HeaderValue::from_bytes(&bearer) {
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
}

/// An error response in this dialect, with the same status and headers.
fn restate(mut response: Response, report: &Report, id: Option<&HeaderValue>) -> Response {
    let mut body = Anthropic::body(report);
    if let Some(id) = id.and_then(|id| id.to_str().ok()) {
        body["request_id"] = id.into();
    }
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(body.to_string());
    response
}

// === impl Anthropic ===

impl Dialect for Anthropic {
    fn body(report: &Report) -> Value {
        json!({ "type": "error", "error": { "type": kind(report), "message": report.message } })
    }

    fn event(report: &Report) -> (Option<&'static str>, Value) {
        (Some("error"), Self::body(report))
    }
}

/// The dialect's name for a kind of error.
fn kind(report: &Report) -> &'static str {
    if report.is_overload {
        return "overloaded_error";
    }
    match report.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "billing_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}
