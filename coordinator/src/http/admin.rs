//! The admin API: status, keys and usage, for whoever runs the server.
//!
//! It is off unless it is given a key of its own, which no client's key is. Every change is a line in the log.

mod status;
mod keys;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Extensions;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::{Error, bearer};
use crate::auth::{KeyId, KeyStore};
use crate::chat::Chat;
use crate::options::{AdminOptions, Limits};
pub use keys::KeyObject;
pub(super) use keys::{KeyList, KeyPatch, NewKey};
pub use status::{FaultStatus, ModelStatus, RankStatus, StatusObject};
pub(super) use usage::UsageList;
pub use usage::UsageObject;

/// Paths of the routes: status, keys, one key, usage.
pub(super) const PATHS: [&str; 4] =
    ["/admin/v1/status", "/admin/v1/keys", "/admin/v1/keys/{id}", "/admin/v1/usage"];

/// What the routes of the admin API share.
#[derive(Clone, Debug)]
pub struct Admin {
    keys: KeyStore,
    /// SHA-256 of the admin key, so that a comparison takes as long whatever is sent.
    key_hash: [u8; 32],
    has_listener: bool,
    limits: Arc<Limits>,
    chat: Arc<Chat>,
    started: Instant,
}

/// Something that the admin API cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field or parameter, where there is one.
    pub param: Option<String>,
    /// What is wrong with it.
    pub message: String,
}

/// Who makes a change, for the log.
#[derive(Clone, Copy, Debug)]
struct Actor(Option<SocketAddr>);

// === impl Admin ===

impl Admin {
    /// Administers `keys`, and shows how the groups of `chat` are, for whoever has the admin key.
    #[must_use]
    pub fn new(
        keys: KeyStore,
        chat: Arc<Chat>,
        options: &AdminOptions,
        limits: Arc<Limits>,
    ) -> Self {
        let key_hash = Sha256::digest(options.key.expose()).into();
        let has_listener = options.listen.is_some();
        Self { keys, key_hash, has_listener, limits, chat, started: Instant::now() }
    }

    /// Whether the API has a listener of its own, and so is not on the main one.
    pub(super) fn has_listener(&self) -> bool {
        self.has_listener
    }

    fn accepts(&self, key: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        hash.ct_eq(&self.key_hash).into()
    }
}

/// All routes of a listener for the admin API only.
pub fn router(admin: Admin) -> Router {
    super::surround(routes(admin))
}

pub(super) fn routes(admin: Admin) -> Router {
    let [status, keys, key, usage] = PATHS;
    Router::new()
        .route(status, get(status::status))
        .route(keys, get(keys::list).post(keys::create))
        .route(key, get(keys::retrieve).patch(keys::update).delete(keys::revoke))
        .route(usage, get(usage::sum_up))
        .route_layer(from_fn_with_state(admin.clone(), authenticate))
        .with_state(admin)
}

async fn authenticate(
    State(admin): State<Admin>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let header = request.headers().get(AUTHORIZATION).ok_or(Error::AdminKey)?;
    let key = bearer(header.as_bytes()).ok_or(Error::AdminKey)?;
    let actor = Actor::new(request.extensions());
    if !admin.accepts(key) {
        tracing::warn!(peer = actor.peer(), "the admin API was asked with a wrong key");
        return Err(Error::AdminKey);
    }
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

// === impl Actor ===

impl Actor {
    fn new(extensions: &Extensions) -> Self {
        Self(extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0))
    }

    fn peer(self) -> Option<tracing::field::DisplayValue<SocketAddr>> {
        self.0.map(tracing::field::display)
    }

    /// The line in the log for a change that was made. The request's id is in the span around it.
    fn did(self, action: &'static str, key: KeyId, fields: &str) {
        tracing::info!(
            target: "switchyard_audit",
            by = "admin key",
            peer = self.peer(),
            action,
            key.id = key.get(),
            fields,
            "key changed"
        );
    }
}

// === impl Invalid ===

impl Invalid {
    fn new(param: &str, message: impl std::fmt::Display) -> Self {
        Self { param: Some(param.to_owned()), message: format!("{param}: {message}") }
    }
}
