//! The HTTP API: OpenAI's completions, responses and models, Anthropic's messages, vLLM's tokenizer routes, metrics and
//! health.
//!
//! - [`chat_completions`], [`completions`], [`responses`], [`messages`], [`tokenize`], [`models`], [`health`]: the routes.
//! - [`openapi`]: the document that describes them.
//! - [`playground`]: a page to try them.
//! - [`files`], [`batches`]: requests in files, answered later.
//! - [`admin`]: keys and usage, for whoever runs the server.
//! - [`authenticate`]: whose request it is, and whether it may begin.
//! - `standby`: refuses requests while another coordinator leads.
//! - [`body`]: a request's body, bounded in size and time.
//! - [`sse`]: an answer as server-sent events.
//! - [`aliases`]: metrics under other servers' names.
//! - [`observe`]: request id, span, counters and the access log, around every route.
//! - [`error`]: each error's status, in one place.

pub mod chat_completions;
pub mod completions;
pub mod messages;
pub mod responses;
pub mod tokenize;
pub mod models;
pub mod files;
pub mod batches;
mod listing;
pub mod health;
pub mod admin;
pub mod authenticate;
mod standby;
pub mod openapi;
pub mod playground;
mod routes;
pub mod aliases;
pub mod body;
pub mod sse;
pub mod observe;
pub mod error;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Extensions;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::Accounts;
use crate::batches::Batches;
use crate::chat::Chat;
use crate::chat::responses::store::Store;
use crate::election::Standing;
use crate::options::Limits;
use aliases::Aliases;
pub use error::Error;
use models::Catalog;
use routes::Routes;

#[cfg(test)]
mod tests;

/// Content type of the Prometheus text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the routes share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Models and their engines.
    pub chat: Arc<Chat>,
    /// Keys of the clients, what they may use, and what they have used.
    pub accounts: Accounts,
    /// The admin API, where it is on.
    pub admin: Option<admin::Admin>,
    /// Responses that clients may come back for.
    pub responses: Arc<Store>,
    /// Batches, and the files of the same keys.
    pub batches: Batches,
    /// Bounds on requests.
    pub limits: Arc<Limits>,
    /// What people call the models.
    pub catalog: Arc<Catalog>,
    /// Whether the playground is served.
    pub playground: bool,
    /// The process's metrics.
    pub metrics: PrometheusHandle,
    /// Whether this coordinator leads, and else who does.
    pub standing: watch::Receiver<Standing>,
    /// Other names under which some of them are shown, too.
    pub metrics_aliases: Option<Aliases>,
    /// Cancelled when the server drains.
    pub draining: CancellationToken,
}

/// All routes. Those of the API need a key. The admin API is among them unless it has a listener of its own.
pub fn router(context: Context) -> Router {
    let keyed = keyed()
        .into_router()
        .route_layer(from_fn_with_state(context.accounts.clone(), authenticate::authenticate))
        .route_layer(from_fn_with_state(context.standing.clone(), standby::refuse));
    let pages = if context.playground { playground::router() } else { Router::new() };
    let admin = context.admin.as_ref().filter(|admin| !admin.has_listener());
    let admin = admin.map_or_else(Router::new, |admin| admin::routes(admin.clone()));
    let routes = Router::new()
        .merge(keyed)
        .merge(messages::router(context.clone()))
        .merge(open().into_router())
        .merge(pages)
        .with_state(context)
        .merge(admin);
    surround(routes)
}

/// Routes that need a key, but for those of Anthropic's dialect.
fn keyed() -> Routes {
    Routes::new()
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::count_tokens))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/completions", post(completions::create))
        .route("/v1/tokenize", post(tokenize::tokenize))
        .route("/v1/detokenize", post(tokenize::detokenize))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/v1/files", files::of_many())
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::retrieve))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(tokenize::model_or_tokenizer))
        .serves("/v1/models/{id}/tokenizer")
}

/// Routes that need none.
fn open() -> Routes {
    Routes::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/decode", get(health::decode))
        .route("/openapi.json", get(openapi::serve))
}

/// What is around all routes of a listener.
fn surround(routes: Router) -> Router {
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(observe::observe))
}

/// The key in an `Authorization` value.
pub(crate) fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, key) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Where a request comes from, if it came over a connection.
pub(crate) fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0)
}

async fn metrics(State(context): State<Context>) -> Response {
    let rendered = context.metrics.render();
    let rendered = match context.metrics_aliases {
        Some(aliases) => aliases.append(rendered),
        None => rendered,
    };
    ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], rendered).into_response()
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
