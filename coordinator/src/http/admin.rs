//! The admin API: status, keys and usage, for whoever runs the server.
//!
//! It is off unless it is given a key of its own, which no client's key is. Every request for keys or usage is a line in the log.

mod status;
mod keys;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::error::Report;
use super::{Error, bearer, peer};
use crate::auth::audit::{self, Action, Actor, Entry};
use crate::auth::failures::{Door, Failure, Failures};
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
    failures: Failures,
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

/// What a request has changed, in its response's extensions.
#[derive(Clone, Debug, Default)]
struct Changed {
    key: Option<KeyId>,
    fields: Vec<&'static str>,
}

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
        let (has_listener, failures) = (options.listen.is_some(), Failures::default());
        Self { keys, key_hash, has_listener, limits, chat, started: Instant::now(), failures }
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

/// Lets the holder of the admin key pass, and records what became of the request.
async fn authenticate(
    State(admin): State<Admin>,
    matched: MatchedPath,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let peer = peer(request.extensions());
    let header = request.headers().get(AUTHORIZATION);
    let Some(key) = header.and_then(|header| bearer(header.as_bytes())) else {
        admin.failures.note(Door::Admin, Failure::Missing, peer);
        return Err(Error::AdminKey);
    };
    if !admin.accepts(key) {
        admin.failures.note(Door::Admin, Failure::Unknown, peer);
        return Err(Error::AdminKey);
    }
    let action = action(request.method(), matched.as_str());
    let named = request.uri().path().rsplit('/').next().and_then(|id| id.parse().ok());
    let response = next.run(request).await;
    let changed = response.extensions().get::<Changed>().cloned().unwrap_or_default();
    let report = response.extensions().get::<Report>();
    if let Some(action) = action {
        let entry = Entry {
            actor: Actor::AdminKey(peer),
            action,
            key: changed.key.or_else(|| named.map(KeyId::new)),
            fields: changed.fields,
            outcome: report.map_or(audit::OK, |report| report.code),
        };
        entry.log();
    }
    Ok(response)
}

/// What a request is in the record. The status is asked for every second and says nothing of keys: it is not in it.
fn action(method: &Method, path: &str) -> Option<Action> {
    let [status, keys, key, usage] = PATHS;
    let action = match (method.as_str(), path) {
        ("GET", path) if path == status => return None,
        ("GET", path) if path == keys => Action::ListKeys,
        ("POST", path) if path == keys => Action::CreateKey,
        ("GET", path) if path == key => Action::ReadKey,
        ("PATCH", path) if path == key => Action::UpdateKey,
        ("DELETE", path) if path == key => Action::RevokeKey,
        ("GET", path) if path == usage => Action::ReadUsage,
        _ => Action::Other,
    };
    Some(action)
}

// === impl Invalid ===

impl Invalid {
    fn new(param: &str, message: impl std::fmt::Display) -> Self {
        Self { param: Some(param.to_owned()), message: format!("{param}: {message}") }
    }
}
