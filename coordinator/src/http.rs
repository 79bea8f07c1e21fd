//! The HTTP API: OpenAI's completions and models, vLLM's tokenizer routes, metrics and health.
//!
//! - [`chat_completions`], [`completions`], [`tokenize`], [`models`], [`health`]: the routes.
//! - [`body`]: a request's body, bounded in size and time.
//! - [`sse`]: an answer as server-sent events.
//! - [`observe`]: request id, span, counters and the access log, around every route.
//! - [`error`]: each error's status, in one place.

pub mod chat_completions;
pub mod completions;
pub mod tokenize;
pub mod models;
pub mod health;
pub mod body;
pub mod sse;
pub mod observe;
pub mod error;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::KeyStore;
use crate::chat::Chat;
use crate::options::Limits;
pub use error::Error;

#[cfg(test)]
mod tests;

/// Content type of the Prometheus text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the routes share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Models and their engines.
    pub chat: Arc<Chat>,
    /// Keys of the clients.
    pub keys: KeyStore,
    /// Bounds on requests.
    pub limits: Arc<Limits>,
    /// The process's metrics.
    pub metrics: PrometheusHandle,
    /// Cancelled when the server drains.
    pub draining: CancellationToken,
}

/// All routes. Those of the API need a key.
pub fn router(context: Context) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/tokenize", post(tokenize::tokenize))
        .route("/v1/detokenize", post(tokenize::detokenize))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(tokenize::model_or_tokenizer))
        .route_layer(from_fn_with_state(context.clone(), authenticate));
    Router::new()
        .merge(api)
        .route("/metrics", get(metrics))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/decode", get(health::decode))
        .fallback(no_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(observe::observe))
        .with_state(context)
}

async fn authenticate(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let header = request.headers().get(AUTHORIZATION).ok_or(Error::MissingKey)?;
    let bearer = bearer(header.as_bytes()).ok_or(Error::MissingKey)?;
    let account = context.keys.check(bearer).await?.ok_or(Error::WrongKey)?;
    tracing::Span::current().record("key.id", account.key_id);
    Ok(next.run(request).await)
}

/// The key in an `Authorization` value.
pub(crate) fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, key) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

async fn metrics(State(context): State<Context>) -> Response {
    ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], context.metrics.render()).into_response()
}

async fn no_route(request: Request) -> Error {
    Error::NoRoute { path: request.uri().path().to_owned() }
}

async fn method_not_allowed(request: Request) -> Error {
    Error::MethodNotAllowed {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    }
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = message, "a request handler panicked");
    Error::Panicked.into_response()
}
