//! What the engine counts. The names are in [`metric_definitions`](crate::metric_definitions).

use std::fmt;
use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use switchyard_moe::ids::ModelId;

use super::group::KvBytes;
use super::serving::Committed;
use crate::metric_definitions::{
    CLUSTER_EPOCHS_TOTAL, CLUSTER_RECOVERIES_TOTAL, ENGINE_RANK_STEP_DURATION,
    ENGINE_STEP_DURATION, ENGINE_STEPS_TOTAL, FAMILY, KIND, KIND_DECODE, KIND_PREFILL, KV_FAMILIES,
    MODEL, RANK, SCHEDULER_FREE_KV_BLOCKS, SCHEDULER_KV_BLOCKS, SCHEDULER_KV_USED,
    SCHEDULER_PREEMPTIONS_TOTAL, SCHEDULER_QUEUE_DURATION, SCHEDULER_RUNNING_SEQUENCES,
    SCHEDULER_TOKENS_TOTAL, SCHEDULER_WAITING_SEQUENCES,
};
use crate::scheduler::{Batch, Stats};

#[cfg(test)]
mod tests;

/// One model's metrics, looked up once.
pub(super) struct Metrics {
    model: String,
    running: Gauge,
    waiting: Gauge,
    preemptions: Counter,
    prefill_tokens: Counter,
    decode_tokens: Counter,
    queue_duration: Histogram,
    steps: Counter,
    step_duration: Histogram,
    rank_step_duration: Histogram,
    epochs: Counter,
    recoveries: Counter,
    /// Used bytes of the KV cache by family, in the order of [`KV_FAMILIES`].
    kv_used: [Gauge; 4],
    kv: KvBytes,
    /// Free and total blocks of each rank; ranks of an earlier, larger group keep theirs, at 0.
    ranks: Vec<(Gauge, Gauge)>,
}

// === impl Metrics ===

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Metrics {
    pub(super) fn new(model: &ModelId) -> Self {
        let model = model.as_str().to_owned();
        let tokens = |kind| counter!(SCHEDULER_TOKENS_TOTAL, MODEL => model.clone(), KIND => kind);
        Self {
            running: gauge!(SCHEDULER_RUNNING_SEQUENCES, MODEL => model.clone()),
            waiting: gauge!(SCHEDULER_WAITING_SEQUENCES, MODEL => model.clone()),
            preemptions: counter!(SCHEDULER_PREEMPTIONS_TOTAL, MODEL => model.clone()),
            prefill_tokens: tokens(KIND_PREFILL),
            decode_tokens: tokens(KIND_DECODE),
            queue_duration: histogram!(SCHEDULER_QUEUE_DURATION, MODEL => model.clone()),
            steps: counter!(ENGINE_STEPS_TOTAL, MODEL => model.clone()),
            step_duration: histogram!(ENGINE_STEP_DURATION, MODEL => model.clone()),
            rank_step_duration: histogram!(ENGINE_RANK_STEP_DURATION, MODEL => model.clone()),
            epochs: counter!(CLUSTER_EPOCHS_TOTAL, MODEL => model.clone()),
            recoveries: counter!(CLUSTER_RECOVERIES_TOTAL, MODEL => model.clone()),
            kv_used: KV_FAMILIES
                .map(|family| gauge!(SCHEDULER_KV_USED, MODEL => model.clone(), FAMILY => family)),
            kv: KvBytes::default(),
            ranks: Vec::new(),
            model,
        }
    }

    pub(super) fn formed(&mut self, world_size: usize, kv: KvBytes) {
        self.kv = kv;
        self.epochs.increment(1);
        for rank in self.ranks.len()..world_size {
            let labels = [(MODEL, self.model.clone()), (RANK, rank.to_string())];
            let free = gauge!(SCHEDULER_FREE_KV_BLOCKS, &labels);
            self.ranks.push((free, gauge!(SCHEDULER_KV_BLOCKS, &labels)));
        }
    }

    pub(super) fn lost(&self) {
        self.recoveries.increment(1);
    }

    pub(super) fn planned(&self, batch: &Batch) {
        let (prefill, decode) = batch.num_tokens();
        self.prefill_tokens.increment(prefill as u64);
        self.decode_tokens.increment(decode as u64);
    }

    pub(super) fn committed(&self, committed: &Committed) {
        self.steps.increment(1);
        self.step_duration.record(committed.duration);
        self.rank_step_duration.record(committed.rank_time());
    }

    pub(super) fn started(&self, waited: Duration) {
        self.queue_duration.record(waited);
    }

    pub(super) fn preempted(&self) {
        self.preemptions.increment(1);
    }

    pub(super) fn stats(&self, stats: &Stats) {
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        let blocks: usize =
            stats.ranks.iter().map(|rank| rank.total_blocks - rank.free_blocks).sum();
        let KvBytes { block, window } = self.kv;
        let used = [
            stats.running * window,
            blocks * block.csa,
            blocks * block.indexer,
            blocks * block.hca,
        ];
        self.kv_used.iter().zip(used).for_each(|(gauge, bytes)| gauge.set(bytes as f64));
        for (rank, (free, total)) in self.ranks.iter().enumerate() {
            let blocks = stats.ranks.get(rank).copied().unwrap_or_default();
            free.set(blocks.free_blocks as f64);
            total.set(blocks.total_blocks as f64);
        }
    }
}
