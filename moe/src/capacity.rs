//! What a model's state costs, in entries, blocks and bytes.
//!
//! A KV block spans [`BLOCK_SIZE`] tokens of one sequence in every layer: the compressed entries of those tokens,
//! with their indexer keys on CSA layers. The sliding window and the tokens not yet compressed are per sequence,
//! not per block.

use crate::config::{AttentionKind, BLOCK_SIZE, ModelConfig};

#[cfg(test)]
mod tests;

/// Rows of [`CacheFormat::F32`] and [`CacheFormat::Fp8`] take a multiple of so many bytes.
const ROW_ALIGNMENT: usize = 16;
/// Bytes of a window row's or entry's scales in [`CacheFormat::Fp8`], one per 64 of up to 512 channels.
const ROW_SCALE_BYTES: usize = 8;
/// Channels of a scale of an indexer key in [`CacheFormat::Fp8`].
const INDEX_KEY_BLOCK: usize = 32;

/// How the rows of the KV cache are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// 4 bytes a number: exact numerics.
    F32,
    /// 2 bytes a number: official numerics on a CPU. Holds every FP8 round-tripped value exactly.
    Bf16,
    /// Official numerics on a GPU: e4m3 with bf16 for the rotated channels, and fp4 for indexer keys, as they were
    /// rounded; and their scales.
    Fp8,
}

impl CacheFormat {
    /// Bytes of a window row or entry of `head_dim` channels, the last `rotary_dim` of them rotated.
    #[must_use]
    pub fn row_bytes(self, head_dim: usize, rotary_dim: usize) -> usize {
        match self {
            Self::F32 => (head_dim * size_of::<f32>()).next_multiple_of(ROW_ALIGNMENT),
            Self::Bf16 => head_dim * 2,
            Self::Fp8 => {
                let codes = (head_dim - rotary_dim).next_multiple_of(ROW_ALIGNMENT);
                let rotated = (rotary_dim * 2).next_multiple_of(ROW_ALIGNMENT);
                codes + rotated + ROW_SCALE_BYTES
            }
        }
    }

    /// Bytes of an indexer key of `dim` channels.
    #[must_use]
    pub fn key_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => self.row_bytes(dim, 0),
            Self::Fp8 => {
                let codes = dim.div_ceil(2).next_multiple_of(ROW_ALIGNMENT);
                codes + dim.div_ceil(INDEX_KEY_BLOCK).next_multiple_of(4)
            }
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

/// Bytes of one KV block over all layers, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockBytes {
    /// Entries of CSA layers.
    pub csa: usize,
    /// Indexer keys of CSA layers.
    pub indexer: usize,
    /// Entries of HCA layers.
    pub hca: usize,
}

impl BlockBytes {
    /// Those of a model.
    #[must_use]
    pub fn new(config: &ModelConfig, format: CacheFormat) -> Self {
        let row = format.row_bytes(config.head_dim, config.qk_rope_head_dim);
        let key = format.key_bytes(config.index_head_dim);
        let mut bytes = Self::default();
        for kind in &config.layers {
            match *kind {
                AttentionKind::SlidingWindow => {}
                AttentionKind::Csa { ratio } => {
                    bytes.csa += entries_per_block(ratio) * row;
                    bytes.indexer += entries_per_block(ratio) * key;
                }
                AttentionKind::Hca { ratio } => bytes.hca += entries_per_block(ratio) * row,
            }
        }
        bytes
    }

    /// All of them.
    #[must_use]
    pub fn total(self) -> usize {
        self.csa + self.indexer + self.hca
    }
}

/// Bytes of one KV block over all layers.
#[must_use]
pub fn block_bytes(config: &ModelConfig, format: CacheFormat) -> usize {
    BlockBytes::new(config, format).total()
}

/// Tokens by which a sequence can be set back after an aborted step or rejected drafts: the rings of window and
/// compressor rows are longer by so much than any token looks back.
pub const ROLLBACK_TOKENS: usize = 32;

/// Rows of a sequence's sliding-window ring, one per token.
#[must_use]
pub fn window_rows(config: &ModelConfig) -> usize {
    config.sliding_window + ROLLBACK_TOKENS
}

/// Rows of a sequence's ring of compressor inputs, one per token: those of the entry that is being filled, on
/// CSA layers also those of the entry before, whose overlap half it pools.
#[must_use]
pub fn tail_rows(kind: AttentionKind) -> usize {
    match kind {
        AttentionKind::SlidingWindow => 0,
        AttentionKind::Csa { ratio } => 2 * ratio + ROLLBACK_TOKENS,
        AttentionKind::Hca { ratio } => ratio + ROLLBACK_TOKENS,
    }
}

/// Bytes that a sequence holds outside its blocks, over all layers: the sliding window, and in f32 the
/// compressor rows of tokens not yet pooled.
#[must_use]
pub fn sequence_bytes(config: &ModelConfig, format: CacheFormat) -> usize {
    let window = window_rows(config) * format.row_bytes(config.head_dim, config.qk_rope_head_dim);
    config
        .layers
        .iter()
        .map(|&kind| {
            // Each row is a kv row and a score row; on CSA layers both halves, for entries and indexer keys.
            let row = match kind {
                AttentionKind::SlidingWindow => 0,
                AttentionKind::Csa { .. } => 2 * 2 * (config.head_dim + config.index_head_dim),
                AttentionKind::Hca { .. } => 2 * config.head_dim,
            };
            window + tail_rows(kind) * row * size_of::<f32>()
        })
        .sum()
}
