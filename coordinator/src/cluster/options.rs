//! What a model group is started with.

use std::sync::Arc;
use std::time::Duration;

use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::ModelId;

use crate::options::Numerics;

/// One model group: the ranks that serve one model.
#[derive(Clone, Debug)]
pub struct ModelGroupOptions {
    /// The name by which clients and workers ask for the model.
    pub model: ModelId,
    /// The model's configuration.
    pub config: Arc<ModelConfig>,
    /// Numerics that workers must compute in.
    pub numerics: Numerics,
    /// Fingerprint that workers' checkpoints must have. `None`: that of the first worker.
    pub checkpoint_fingerprint: Option<String>,
    /// Sizes of the workers' state.
    pub cache: CacheOptions,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What becomes of the workers at shutdown.
    pub farewell: Farewell,
}

/// What becomes of workers whose coordinator goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Farewell {
    /// They are asked to exit: there is nobody else.
    #[default]
    Exit,
    /// Their leases end, and they look for the next coordinator, with what they have loaded.
    Stay,
}

/// Sizes of a worker's state, and of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of each rank's pool of KV blocks.
    pub kv_cache_bytes: u64,
    /// Sequences running at once on one rank.
    pub max_num_seqs: usize,
    /// Tokens that one rank computes in one step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and answer together. `None`: the model's own limit.
    pub max_model_len: Option<usize>,
    /// Sequences waiting for a place, over all ranks.
    pub max_waiting: usize,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest time for a worker to answer when dialled or asked who it is.
    pub probe: Duration,
    /// Longest silence of a worker that loads.
    pub load_silence: Duration,
    /// Longest time for all ranks to connect to each other.
    pub form: Duration,
    /// Longest time of one step.
    pub step: Duration,
    /// After a loss: how long to wait for a replacement before going on with the survivors.
    pub rejoin_grace: Duration,
    /// After a loss: how long running streams wait for a group before they fail.
    pub recovery: Duration,
    /// At shutdown: how long running streams get to finish.
    pub drain: Duration,
}

// === impl ModelGroupOptions ===

impl ModelGroupOptions {
    /// A group with default sizes and times, in official numerics.
    #[must_use]
    pub fn new(model: ModelId, config: Arc<ModelConfig>) -> Self {
        Self {
            model,
            config,
            numerics: Numerics::Official,
            checkpoint_fingerprint: None,
            cache: CacheOptions::default(),
            timeouts: Timeouts::default(),
            farewell: Farewell::default(),
        }
    }
}

// === impl CacheOptions ===

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            kv_cache_bytes: 256 << 20,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_model_len: None,
            max_waiting: 1024,
        }
    }
}

// === impl Timeouts ===

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(2),
            load_silence: Duration::from_secs(60),
            form: Duration::from_secs(15),
            step: Duration::from_secs(30),
            rejoin_grace: Duration::from_secs(2),
            recovery: Duration::from_secs(120),
            drain: Duration::from_secs(20),
        }
    }
}
