//! A group's status as gauges. The names are in [`metric_definitions`](crate::metric_definitions).

use ::metrics::gauge;
use tokio::time::Instant;

use super::status::{GroupStatus, Phase};
use crate::metric_definitions::{
    CLUSTER_EPOCH, CLUSTER_LOAD_RATIO, CLUSTER_PHASE, CLUSTER_WORLD_SIZE, ENGINE_STALLED, MODEL,
    PHASE, RANK,
};

#[cfg(test)]
mod tests;

/// Sets the gauges to where a group stands. For calling every second or so: what changes with each token, and what changes
/// by itself, needs no more.
pub fn record(model: &str, status: &GroupStatus, now: Instant) {
    let model = model.to_owned();
    for phase in Phase::NAMES {
        let is_present = phase == status.phase.name();
        gauge!(CLUSTER_PHASE, MODEL => model.clone(), PHASE => phase)
            .set(f64::from(u8::from(is_present)));
    }
    gauge!(CLUSTER_EPOCH, MODEL => model.clone()).set(status.epoch.0 as f64);
    gauge!(CLUSTER_WORLD_SIZE, MODEL => model.clone()).set(status.world_size as f64);
    let stalled = status.stalled_for(now).unwrap_or_default();
    gauge!(ENGINE_STALLED, MODEL => model.clone()).set(stalled);
    let loaded = match &status.phase {
        Phase::Loading { ranks } => ranks.clone(),
        Phase::Ready => vec![1.0; status.world_size],
        Phase::WaitingForWorkers { .. }
        | Phase::Forming
        | Phase::Recovering { .. }
        | Phase::Unavailable { .. }
        | Phase::Stopping => Vec::new(),
    };
    for (rank, loaded) in loaded.into_iter().enumerate() {
        gauge!(CLUSTER_LOAD_RATIO, MODEL => model.clone(), RANK => rank.to_string()).set(loaded);
    }
}
