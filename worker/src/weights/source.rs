//! What a rank reads its parameters from.

use std::fmt;
use std::path::PathBuf;

use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::EpRank;
use switchyard_moe::placement::Placement;

use super::{Checkpoint, Error, Matrix};

/// The parameters of one model by name.
pub trait Source: fmt::Debug {
    /// The configuration.
    fn config(&self) -> &ModelConfig;

    /// Where its `tokenizer.json` would be, if it lies in a folder.
    fn tokenizer(&self) -> Option<PathBuf>;

    /// Bytes that `rank` reads under `placement`: everything but other ranks' experts.
    fn num_bytes_for(&self, rank: EpRank, placement: &Placement) -> u64;

    /// Whether official numerics quantise the inputs of every routed expert.
    fn has_quantized_experts(&self) -> bool;

    /// Bytes of tensor `name`, 0 if there is none.
    fn num_bytes_of(&self, name: &str) -> usize;

    /// The matrix in tensor `name`, with its scales if it has any.
    ///
    /// # Errors
    /// When it is missing or cannot be computed with.
    fn matrix(&self, name: &str) -> Result<Matrix<'_>, Error>;

    /// The numbers of the vector or small matrix `name`, widened to f32.
    ///
    /// # Errors
    /// When it is missing or cannot be computed with.
    fn floats(&self, name: &str) -> Result<Vec<f32>, Error>;

    /// The expert ids of `gate.tid2eid` tensor `name`, `[vocab_size, num_experts_per_tok]`.
    ///
    /// # Errors
    /// When it is missing or names an expert that the model does not have.
    fn expert_ids(&self, name: &str) -> Result<Vec<u32>, Error>;
}

impl Source for Checkpoint {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn tokenizer(&self) -> Option<PathBuf> {
        Some(self.tokenizer())
    }

    fn num_bytes_for(&self, rank: EpRank, placement: &Placement) -> u64 {
        self.num_bytes_for(rank, placement)
    }

    fn has_quantized_experts(&self) -> bool {
        self.has_quantized_experts()
    }

    fn num_bytes_of(&self, name: &str) -> usize {
        self.num_bytes_of(name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>, Error> {
        self.matrix(name)
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.floats(name)
    }

    fn expert_ids(&self, name: &str) -> Result<Vec<u32>, Error> {
        self.expert_ids(name)
    }
}
