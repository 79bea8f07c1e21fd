//! What a model's state costs, in entries, blocks and bytes.
//!
//! A KV block spans [`BLOCK_SIZE`] tokens of one sequence in every layer: the compressed entries of those tokens,
//! with their indexer keys on CSA layers. The sliding window and the tokens not yet compressed are per sequence,
//! not per block.

use crate::config::{AttentionKind, BLOCK_SIZE, ModelConfig};

#[cfg(test)]
mod tests;

/// How one number of the KV cache is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// 4 bytes: exact numerics.
    F32,
    /// 2 bytes: official numerics on a CPU. Holds every FP8 round-tripped value exactly.
    Bf16,
}

impl CacheFormat {
    /// Bytes of one number.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Blocks that hold the state of `num_tokens` tokens.
#[must_use]
pub fn num_blocks(num_tokens: usize) -> usize {
    num_tokens.div_ceil(BLOCK_SIZE)
}

/// Index of the first compressed entry whose first token lies in block `block` or later.
///
/// Entry `w` pools the tokens from `w * ratio` on and belongs to the block of its first token.
#[must_use]
pub fn first_entry_of_block(block: usize, ratio: usize) -> usize {
    (block * BLOCK_SIZE).div_ceil(ratio)
}

/// Entries that one block has room for.
#[must_use]
pub fn entries_per_block(ratio: usize) -> usize {
    BLOCK_SIZE.div_ceil(ratio)
}

/// Bytes of one KV block over all layers.
#[must_use]
pub fn block_bytes(config: &ModelConfig, format: CacheFormat) -> usize {
    let numbers: usize = config
        .layers
        .iter()
        .map(|kind| match *kind {
            AttentionKind::SlidingWindow => 0,
            AttentionKind::Csa { ratio } => {
                entries_per_block(ratio) * (config.head_dim + config.index_head_dim)
            }
            AttentionKind::Hca { ratio } => entries_per_block(ratio) * config.head_dim,
        })
        .sum();
    numbers * format.num_bytes()
}

/// Bytes that a sequence holds outside its blocks, over all layers: the sliding window, and in f32 the
/// compressor rows of tokens not yet pooled.
#[must_use]
pub fn sequence_bytes(config: &ModelConfig, format: CacheFormat) -> usize {
    let window = config.sliding_window * config.head_dim * format.num_bytes();
    config
        .layers
        .iter()
        .map(|kind| {
            window
                + match *kind {
                    AttentionKind::SlidingWindow => 0,
                    AttentionKind::Csa { ratio } => {
                        // kv and score, own and previous window, both halves, main and indexer
                        2 * 2 * ratio * 2 * (config.head_dim + config.index_head_dim) * 4
                    }
                    AttentionKind::Hca { ratio } => 2 * ratio * config.head_dim * 4,
                }
        })
        .sum()
}
