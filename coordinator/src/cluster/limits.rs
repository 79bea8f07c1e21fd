//! A group's options as blocks and tokens, and the ranks that its weights need.

use switchyard_moe::capacity::{self, BlockBytes, CacheFormat};
use switchyard_moe::config::{BLOCK_SIZE, ModelConfig};
use switchyard_proto::worker::CacheLimits;
use tracing::warn;

use super::ModelGroupOptions;
use crate::engine::group::KvBytes;
use crate::options::Numerics;
use crate::scheduler::Limits;

#[cfg(test)]
mod tests;

/// Kind of device of workers on processors.
pub const CPU: &str = "cpu";
/// Kind of device of workers on NVIDIA GPUs.
pub const CUDA: &str = "cuda";

/// Why options are impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A limit is zero.
    #[error("{0} is 0; give it at least 1")]
    Zero(&'static str),
    /// The pool has no room for one block.
    #[error("kv_cache_bytes is {kv_cache_bytes}, but one block of this model takes {block_bytes}")]
    NoBlock {
        /// Bytes given.
        kv_cache_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
    },
}

/// How workers of a kind of device keep the KV cache.
#[must_use]
pub fn cache_format(numerics: Numerics, device_kind: &str) -> CacheFormat {
    match numerics {
        Numerics::Exact => CacheFormat::F32,
        Numerics::Official if device_kind == CUDA => CacheFormat::Fp8,
        Numerics::Official => CacheFormat::Bf16,
    }
}

/// Resolves a group's options for workers that compute on `device_kind`. A pool that is too small for one sequence of
/// `max_model_len` tokens lowers that length. No kind has fewer blocks than `cpu`.
///
/// # Errors
/// See [`Error`].
pub fn resolve(options: &ModelGroupOptions, device_kind: &str) -> Result<Limits, Error> {
    let cache = &options.cache;
    for (name, value) in [
        ("max_num_seqs", cache.max_num_seqs),
        ("max_num_batched_tokens", cache.max_num_batched_tokens),
        ("max_model_len", cache.max_model_len.unwrap_or(1)),
        ("max_waiting", cache.max_waiting),
    ] {
        if value == 0 {
            return Err(Error::Zero(name));
        }
    }
    let format = cache_format(options.numerics, device_kind);
    let wanted_len = wanted_len(options);
    // A model of sliding windows only has blocks of no bytes; the count still bounds its sequences.
    let block_bytes = capacity::block_bytes(&options.config, format).max(1) as u64;
    let affordable = usize::try_from(cache.kv_cache_bytes / block_bytes).unwrap_or(usize::MAX);
    if affordable == 0 {
        return Err(Error::NoBlock { kv_cache_bytes: cache.kv_cache_bytes, block_bytes });
    }
    // More than every sequence at its longest could never be used.
    let useful = capacity::num_blocks(wanted_len).saturating_mul(cache.max_num_seqs);
    let num_blocks = affordable.min(useful).min(u32::MAX as usize);
    Ok(Limits {
        max_num_seqs: cache.max_num_seqs,
        max_num_batched_tokens: cache.max_num_batched_tokens,
        max_model_len: wanted_len.min(num_blocks.saturating_mul(BLOCK_SIZE)),
        num_blocks,
        max_waiting: cache.max_waiting,
    })
}

/// Warns if the pool is too small for the longest sequence.
pub fn warn_if_lowered(options: &ModelGroupOptions, limits: &Limits) {
    let (max_model_len, wanted_len) = (limits.max_model_len, wanted_len(options));
    if max_model_len < wanted_len {
        warn!(
            model = %options.model,
            max_model_len,
            wanted_len,
            kv_cache_bytes = options.cache.kv_cache_bytes,
            "the KV cache is too small for the longest sequence: max_model_len is lowered; raise kv_cache_bytes"
        );
    }
}

/// What sequences cost workers that compute on `device_kind`.
#[must_use]
pub fn kv_bytes(options: &ModelGroupOptions, device_kind: &str) -> KvBytes {
    let format = cache_format(options.numerics, device_kind);
    KvBytes {
        block: BlockBytes::new(&options.config, format),
        window: capacity::sequence_bytes(&options.config, format),
    }
}

fn wanted_len(options: &ModelGroupOptions) -> usize {
    let longest = options.config.max_position_embeddings;
    options.cache.max_model_len.map_or(longest, |len| len.min(longest))
}

/// The part of the limits that a worker must provide for.
#[must_use]
pub fn cache_limits(limits: &Limits) -> CacheLimits {
    CacheLimits {
        num_blocks: limits.num_blocks as u32,
        max_num_seqs: limits.max_num_seqs as u32,
        max_num_batched_tokens: limits.max_num_batched_tokens as u32,
        max_model_len: limits.max_model_len as u32,
    }
}

/// Fewest ranks over which the experts fit in `memory_bytes` each; 0 bytes means that the memory is not known, and
/// 1 rank is tried.
///
/// Counts the routed experts, by far the most of any such model, in the released FP4 format.
#[must_use]
pub fn min_world_size(config: &ModelConfig, memory_bytes: u64) -> usize {
    if memory_bytes == 0 {
        return 1;
    }
    let expert_bytes = fp4_expert_bytes(config) * config.num_hidden_layers as u64;
    (1..config.n_routed_experts)
        .find(|&ranks| {
            config.n_routed_experts.div_ceil(ranks) as u64 * expert_bytes <= memory_bytes
        })
        .unwrap_or(config.n_routed_experts)
}

/// Bytes of one expert of one layer: three matrices of 4-bit values with one scale byte per 32.
fn fp4_expert_bytes(config: &ModelConfig) -> u64 {
    let values = 3 * config.hidden_size as u64 * config.moe_intermediate_size as u64;
    values / 2 + values / 32
}
