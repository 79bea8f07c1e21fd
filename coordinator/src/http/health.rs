//! `/health/live`, `/health/ready`, `/health/decode`.
//!
//! - live: the process answers.
//! - ready: this coordinator leads, at least one model group takes requests, and the server is not draining. The body
//!   tells each model's state, so that a router can choose by model.
//! - decode: no group has work without having produced a token for the configured time.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::Context;

/// Answer of `/health/ready`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ready {
    /// `ready`, `not ready`, `standby` or `draining`.
    status: &'static str,
    /// On standby: which coordinator leads, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
    /// Each model's state.
    #[schemars(with = "BTreeMap<String, ModelReady>")]
    models: IndexMap<String, ModelReady>,
}

/// A model's state.
#[derive(Debug, Serialize, JsonSchema)]
struct ModelReady {
    /// Whether a request sent now will be served.
    ready: bool,
    /// What its workers are doing.
    phase: String,
    /// Which membership and placement of its workers this is.
    epoch: u64,
    /// Its workers.
    world_size: usize,
    /// Answers being generated.
    running: usize,
    /// Requests waiting for their turn.
    waiting: usize,
}

/// Answer of `/health/decode`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Decode {
    /// `ok` or `stalled`.
    status: &'static str,
    /// Seconds without a token despite work, by model; empty when all is well.
    #[schemars(with = "BTreeMap<String, u64>")]
    stalled_seconds: IndexMap<String, u64>,
}

/// 200 for as long as the process answers.
pub async fn live() -> &'static str {
    "ok\n"
}

/// 200 when this coordinator leads and at least one model is routable.
pub async fn ready(State(context): State<Context>) -> (StatusCode, Json<Ready>) {
    let models: IndexMap<_, _> = context
        .chat
        .models()
        .map(|served| {
            let status = served.engine.watch().borrow().clone();
            let model = ModelReady {
                ready: status.phase.is_routable(),
                phase: status.phase.to_string(),
                epoch: status.epoch.0,
                world_size: status.world_size,
                running: status.running,
                waiting: status.waiting,
            };
            (served.model.id().to_owned(), model)
        })
        .collect();
    let standing = context.standing.borrow().clone();
    let (code, status) = if context.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if !standing.leads() {
        (StatusCode::SERVICE_UNAVAILABLE, "standby")
    } else if models.values().any(|model| model.ready) {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    let leader = standing.leader().map(str::to_owned);
    (code, Json(Ready { status, leader, models }))
}

/// 503 when a group has work and no token came for too long.
pub async fn decode(State(context): State<Context>) -> (StatusCode, Json<Decode>) {
    let now = Instant::now();
    let stalled_seconds: IndexMap<_, _> = context
        .chat
        .models()
        .filter_map(|served| {
            let stalled = served.engine.watch().borrow().stalled_for(now)?;
            (stalled >= context.limits.decode_stall_after)
                .then(|| (served.model.id().to_owned(), stalled.as_secs()))
        })
        .collect();
    let (code, status) = if stalled_seconds.is_empty() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "stalled")
    };
    (code, Json(Decode { status, stalled_seconds }))
}
