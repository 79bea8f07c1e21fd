//! `/admin/v1/status`: how the groups are and what they do, for whoever runs the server.
//!
//! It is what `switchyard status` shows. Everything in it comes from [`GroupStatus`], as the metrics do.

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Admin;
use crate::engine::activity::Rates;
use crate::engine::status::{Fault, GroupStatus, Phase, RankMember};

/// Version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a coordinator is. Rates are means over the last five seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusObject {
    /// Always `status`.
    pub object: String,
    /// Version of the coordinator.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Whether a request for any of its models sent now will be served.
    pub ready: bool,
    /// Its models, in the order of its options.
    pub models: Vec<ModelStatus>,
}

/// How a model's group is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelStatus {
    /// Id of the model.
    pub id: String,
    /// Whether a request sent now will be served.
    pub ready: bool,
    /// `waiting_for_workers`, `loading`, `forming`, `ready`, `recovering`, `unavailable` or `stopping`.
    pub phase: String,
    /// The phase in words, with what it waits for or what happened.
    pub detail: String,
    /// Which membership and placement of its workers this is.
    pub epoch: u64,
    /// Longest sequence, prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Answers being generated.
    pub running: usize,
    /// Answers that wait for a place.
    pub waiting: usize,
    /// Seconds without a token although there is work; null without work.
    pub stalled_seconds: Option<f64>,
    /// Answers completed per second; each choice of a request is one.
    pub answers_per_second: f64,
    /// Tokens of answers per second.
    pub generated_tokens_per_second: f64,
    /// Tokens of prompts computed per second.
    pub prompt_tokens_per_second: f64,
    /// Mean duration of a step; null when there was none.
    pub step_seconds: Option<f64>,
    /// KV blocks that sequences hold, over all ranks.
    pub kv_blocks_used: usize,
    /// KV blocks, over all ranks.
    pub kv_blocks: usize,
    /// The ranks of its newest group.
    pub ranks: Vec<RankStatus>,
    /// What went wrong lately, oldest first.
    pub faults: Vec<FaultStatus>,
}

/// How a rank is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankStatus {
    /// Its number in the group.
    pub rank: usize,
    /// `loading`, `waiting` for the others, `ready`, `lost` or `stopping`.
    pub state: String,
    /// Share of its experts that it has loaded, 0 to 1.
    pub loaded: f64,
    /// Number of the worker, counted by the coordinator.
    pub worker: u64,
    /// Where the coordinator drives the worker.
    pub address: String,
    /// The worker's process on its machine.
    pub pid: u32,
    /// What it computes on.
    pub device: String,
    /// Sequences that live there.
    pub sequences: usize,
    /// KV blocks that they hold.
    pub kv_blocks_used: usize,
    /// KV blocks of the rank.
    pub kv_blocks: usize,
    /// Tokens that it computes per second.
    pub tokens_per_second: f64,
    /// Its own account of a step's mean duration; null when there was none.
    pub step_seconds: Option<f64>,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultStatus {
    /// How long ago it was noticed.
    pub seconds_ago: f64,
    /// `worker_lost`, `worker_silent`, `step_failed` or `not_formed`.
    pub fault: String,
    /// The culprits, as far as they are known.
    pub ranks: Vec<u32>,
    /// The epoch that it ended.
    pub epoch: u64,
    /// What happened.
    pub message: String,
}

pub(super) async fn status(State(admin): State<Admin>) -> Json<StatusObject> {
    let now = Instant::now();
    let models = admin.chat.models().map(|served| {
        let status = served.engine.watch().borrow().clone();
        ModelStatus::new(served.model.id(), &status, now)
    });
    let models: Vec<_> = models.collect();
    Json(StatusObject {
        object: "status".to_owned(),
        version: VERSION.to_owned(),
        uptime_seconds: now.saturating_duration_since(admin.started).as_secs_f64(),
        ready: models.iter().all(|model| model.ready),
        models,
    })
}

// === impl ModelStatus ===

impl ModelStatus {
    /// What is told of a group.
    #[must_use]
    pub fn new(id: &str, status: &GroupStatus, now: Instant) -> Self {
        let rates = status.activity.rates(now);
        let ranks: Vec<_> = status
            .members
            .iter()
            .enumerate()
            .map(|(rank, member)| RankStatus::new(rank, member, status, &rates))
            .collect();
        Self {
            id: id.to_owned(),
            ready: status.phase.is_routable(),
            phase: status.phase.name().to_owned(),
            detail: status.phase.to_string(),
            epoch: status.epoch.0,
            max_model_len: status.max_model_len,
            running: status.running,
            waiting: status.waiting,
            stalled_seconds: status.stalled_for(now).map(|stalled| stalled.as_secs_f64()),
            answers_per_second: rates.answers,
            generated_tokens_per_second: rates.generated_tokens,
            prompt_tokens_per_second: rates.prefill_tokens,
            step_seconds: rates.step_seconds,
            kv_blocks_used: ranks.iter().map(|rank| rank.kv_blocks_used).sum(),
            kv_blocks: ranks.iter().map(|rank| rank.kv_blocks).sum(),
            ranks,
            faults: faults(&status.faults, now),
        }
    }
}

// === impl RankStatus ===

impl RankStatus {
    fn new(rank: usize, member: &RankMember, status: &GroupStatus, rates: &Rates) -> Self {
        let blocks = status.ranks.get(rank);
        let rates = rates.ranks.get(rank).copied().unwrap_or_default();
        Self {
            rank,
            state: state(member, &status.phase).to_owned(),
            loaded: member.loaded.into(),
            worker: member.worker.0,
            address: member.address.clone(),
            pid: member.pid,
            device: member.device.clone(),
            sequences: blocks.map_or(0, |blocks| blocks.sequences),
            kv_blocks_used: blocks.map_or(0, |blocks| blocks.total - blocks.free),
            kv_blocks: blocks.map_or(0, |blocks| blocks.total),
            tokens_per_second: rates.tokens,
            step_seconds: rates.step_seconds,
        }
    }
}

/// A rank's state in a word.
fn state(member: &RankMember, phase: &Phase) -> &'static str {
    match phase {
        Phase::Stopping => "stopping",
        Phase::Ready => {
            if member.is_lost {
                "lost"
            } else {
                "ready"
            }
        }
        Phase::WaitingForWorkers { .. }
        | Phase::Loading { .. }
        | Phase::Forming
        | Phase::Recovering { .. }
        | Phase::Unavailable { .. } => {
            if member.is_lost {
                "lost"
            } else if member.loaded < 1.0 {
                "loading"
            } else {
                "waiting"
            }
        }
    }
}

fn faults(faults: &VecDeque<Fault>, now: Instant) -> Vec<FaultStatus> {
    let fault = |fault: &Fault| FaultStatus {
        seconds_ago: now.saturating_duration_since(fault.at).as_secs_f64(),
        fault: fault.kind.to_owned(),
        ranks: fault.ranks.iter().map(|rank| rank.0).collect(),
        epoch: fault.epoch.0,
        message: fault.message.clone(),
    };
    faults.iter().map(fault).collect()
}

#[cfg(test)]
mod tests;
