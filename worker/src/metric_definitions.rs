//! Every metric of the worker: names, labels, units. Call sites hold handles or call a function of this file.

use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use switchyard_moe::ids::EpRank;

use crate::step::StepTimings;

/// Bounds of all durations, in seconds: from one exchange on fast links to a step that is about to be given up.
///
/// Buckets and not quantiles, because quantiles of several ranks cannot be put together.
pub const DURATION_BUCKETS: [f64; 16] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    5.0, 20.0,
];
/// What the names of durations end in.
pub const DURATION_SUFFIX: &str = "_seconds";

/// Steps computed, by `outcome` (`ok`, `failed`).
const STEPS: &str = "switchyard_worker_steps_total";
/// Duration of a step on this rank.
const STEP_DURATION: &str = "switchyard_worker_step_duration_seconds";
/// Part of a step's duration, by `phase` (`attention`, `dispatch`, `experts`, `combine`, `head`).
const STEP_PHASE_DURATION: &str = "switchyard_worker_step_phase_duration_seconds";
/// Tokens computed.
const TOKENS: &str = "switchyard_worker_tokens_total";
/// Tokens sampled.
const SAMPLES: &str = "switchyard_worker_samples_total";
/// Samples put off because their grammar's mask was not ready in time.
const SAMPLES_DEFERRED: &str = "switchyard_worker_samples_deferred_total";
/// Rows that the experts of this rank computed, by `layer`.
const EXPERT_ROWS: &str = "switchyard_worker_expert_rows_total";
/// Time to find the mask of one token of a constrained answer, compiling its grammar included.
const MASK_DURATION: &str = "switchyard_worker_mask_duration_seconds";
/// Wait for one peer's rows in an exchange, by `peer` (its rank).
const COLLECTIVE_WAIT: &str = "switchyard_worker_collective_wait_seconds";
/// Bytes sent to peers, headers included, by `peer` (its rank).
const COLLECTIVE_SENT: &str = "switchyard_worker_collective_sent_bytes_total";
/// Exchanges that failed, by `culprit` (its rank).
const COLLECTIVE_FAILURES: &str = "switchyard_worker_collective_failures_total";
/// Bytes of weights that this rank holds.
const LOADED: &str = "switchyard_worker_loaded_bytes";
/// Sequences whose state this rank holds.
const SEQUENCES: &str = "switchyard_worker_sequences";
/// Epoch of the group that this rank is in; 0 if in none.
const EPOCH: &str = "switchyard_worker_group_epoch";
/// Whether the coordinator holds this worker's registration.
const REGISTERED: &str = "switchyard_worker_registered";

/// Registers the descriptions and units of all metrics with the recorder.
pub fn describe() {
    describe_counter!(STEPS, Unit::Count, "Steps computed, by outcome");
    describe_histogram!(STEP_DURATION, Unit::Seconds, "Duration of a step on this rank");
    describe_histogram!(
        STEP_PHASE_DURATION,
        Unit::Seconds,
        "Part of a step's duration spent in a phase, summed over layers"
    );
    describe_counter!(TOKENS, Unit::Count, "Tokens computed");
    describe_counter!(SAMPLES, Unit::Count, "Tokens sampled");
    describe_counter!(
        SAMPLES_DEFERRED,
        Unit::Count,
        "Samples put off because their grammar's mask was not ready in time"
    );
    describe_counter!(
        EXPERT_ROWS,
        Unit::Count,
        "Rows that the experts of this rank computed, a row once for each of its experts, by layer"
    );
    describe_histogram!(
        MASK_DURATION,
        Unit::Seconds,
        "Time to find the mask of one token of a constrained answer"
    );
    describe_histogram!(COLLECTIVE_WAIT, Unit::Seconds, "Wait for one peer's rows in one exchange");
    describe_counter!(COLLECTIVE_SENT, Unit::Bytes, "Bytes sent to a peer, headers included");
    describe_counter!(COLLECTIVE_FAILURES, Unit::Count, "Exchanges that failed, by culprit");
    describe_gauge!(LOADED, Unit::Bytes, "Bytes of weights that this rank holds");
    describe_gauge!(SEQUENCES, Unit::Count, "Sequences whose state this rank holds");
    describe_gauge!(EPOCH, Unit::Count, "Epoch of the group that this rank is in, 0 if in none");
    describe_gauge!(REGISTERED, Unit::Count, "1 while the coordinator holds the registration");
    switchyard_tls::metric_definitions::describe();
}

/// Handles for one connection of the data plane.
#[derive(Clone, Debug)]
pub(crate) struct LinkMeters {
    /// Bytes sent to the peer, headers included.
    pub(crate) bytes_sent: Counter,
    /// Seconds from the beginning of an exchange to the peer's last byte.
    pub(crate) wait_seconds: Histogram,
}

/// Makes the handles for the connection to `peer`.
pub(crate) fn link_meters(peer: EpRank) -> LinkMeters {
    LinkMeters {
        bytes_sent: counter!(COLLECTIVE_SENT, "peer" => peer.to_string()),
        wait_seconds: histogram!(COLLECTIVE_WAIT, "peer" => peer.to_string()),
    }
}

/// A step was computed.
pub(crate) fn step_done(timings: &StepTimings, num_samples: usize) {
    counter!(STEPS, "outcome" => "ok").increment(1);
    counter!(TOKENS).increment(timings.num_tokens.into());
    counter!(SAMPLES).increment(num_samples as u64);
    histogram!(STEP_DURATION).record(timings.total);
    let phases = [
        ("attention", timings.attention),
        ("dispatch", timings.dispatch),
        ("experts", timings.experts),
        ("combine", timings.combine),
        ("head", timings.head),
    ];
    for (phase, seconds) in phases {
        histogram!(STEP_PHASE_DURATION, "phase" => phase).record(seconds);
    }
}

/// Counters of expert rows, by layer; looked up once, because a step has many layers.
#[derive(Debug, Default)]
pub(crate) struct ExpertMeters(Vec<Counter>);

impl ExpertMeters {
    /// A step was computed in which the experts of each layer had so many rows.
    pub(crate) fn step_done(&mut self, rows: &[u32]) {
        for layer in self.0.len()..rows.len() {
            self.0.push(counter!(EXPERT_ROWS, "layer" => layer.to_string()));
        }
        for (counter, &rows) in self.0.iter().zip(rows) {
            counter.increment(rows.into());
        }
    }
}

/// So many of a step's samples were put off. None counts too: a counter that appears with its first event has no rate before.
pub(crate) fn samples_deferred(num_samples: usize) {
    counter!(SAMPLES_DEFERRED).increment(num_samples as u64);
}

/// A mask was found, or given up.
pub(crate) fn mask_found(duration: Duration) {
    histogram!(MASK_DURATION).record(duration);
}

/// A step failed.
pub(crate) fn step_failed(culprit: Option<EpRank>) {
    counter!(STEPS, "outcome" => "failed").increment(1);
    if let Some(culprit) = culprit {
        counter!(COLLECTIVE_FAILURES, "culprit" => culprit.to_string()).increment(1);
    }
}

/// The weights in memory have changed.
pub(crate) fn loaded(bytes: u64) {
    gauge!(LOADED).set(bytes as f64);
}

/// The number of sequences with state has changed.
pub(crate) fn sequences(num_sequences: usize) {
    gauge!(SEQUENCES).set(num_sequences as f64);
}

/// The group has changed.
pub(crate) fn group_epoch(epoch: u64) {
    gauge!(EPOCH).set(epoch as f64);
}

/// The registration was granted or has ended.
pub(crate) fn registered(is_registered: bool) {
    gauge!(REGISTERED).set(f64::from(u8::from(is_registered)));
}
