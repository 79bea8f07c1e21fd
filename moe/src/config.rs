//! `config.json` of a DeepSeek-V4 checkpoint: parsed as written, then checked into [`ModelConfig`].

use serde::Deserialize;

mod presets;
#[cfg(test)]
mod tests;

/// Tokens of one KV block.
pub const BLOCK_SIZE: usize = 128;

/// Input channels (and output rows) that share one scale of an FP8 weight.
pub const FP8_BLOCK: usize = 128;

/// Input channels that share one scale of an FP4 weight.
pub const FP4_BLOCK: usize = 32;

/// A model configuration whose values have been checked against each other.
///
/// Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of one residual stream.
    pub hidden_size: usize,
    /// Main layers, without MTP.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Width of a head, of the one KV head, and of a compressed entry.
    pub head_dim: usize,
    /// Last channels of a head that RoPE rotates.
    pub qk_rope_head_dim: usize,
    /// Width of the query latent.
    pub q_lora_rank: usize,
    /// Groups of the output projection.
    pub o_groups: usize,
    /// Output width of each group's first projection.
    pub o_lora_rank: usize,
    /// Routed experts per layer.
    pub n_routed_experts: usize,
    /// Routed experts each token uses.
    pub num_experts_per_tok: usize,
    /// Inner width of an expert.
    pub moe_intermediate_size: usize,
    /// First layers whose experts are chosen by token id.
    pub num_hash_layers: usize,
    /// Factor on the normalised routing weights.
    pub routed_scaling_factor: f32,
    /// Clamp of the SwiGLU inputs; 0 means none.
    pub swiglu_limit: f32,
    /// Tokens that sliding-window attention sees, including the query's own.
    pub sliding_window: usize,
    /// Heads of the lightning indexer.
    pub index_n_heads: usize,
    /// Width of an indexer head.
    pub index_head_dim: usize,
    /// Compressed entries that the indexer selects.
    pub index_topk: usize,
    /// Attention kind of each main layer, `[num_hidden_layers]`.
    pub layers: Vec<AttentionKind>,
    /// RoPE base of sliding-window layers.
    pub rope_theta: f32,
    /// RoPE base of compressing layers, with YaRN.
    pub compress_rope_theta: f32,
    /// YaRN parameters of compressing layers.
    pub yarn: Option<Yarn>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Residual streams.
    pub hc_mult: usize,
    /// Sinkhorn normalisations of the residual mixing matrix.
    pub hc_sinkhorn_iters: usize,
    /// Epsilon of the residual mixing.
    pub hc_eps: f32,
    /// Epsilon of RMS norms.
    pub rms_norm_eps: f32,
    /// Token that begins a prompt.
    pub bos_token_id: u32,
    /// Token that ends an answer.
    pub eos_token_id: u32,
}

/// How a layer attends beyond its sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// The window only (ratio 0).
    SlidingWindow,
    /// Compressed sparse attention: overlapping compressor and lightning indexer (ratio 4).
    Csa {
        /// Tokens per compressed entry.
        ratio: usize,
    },
    /// Heavily compressed attention: every finished entry is attended (any other ratio).
    Hca {
        /// Tokens per compressed entry.
        ratio: usize,
    },
}

impl AttentionKind {
    /// Tokens per compressed entry, or `None` for a layer without compressor.
    #[must_use]
    pub fn ratio(self) -> Option<usize> {
        match self {
            Self::SlidingWindow => None,
            Self::Csa { ratio } | Self::Hca { ratio } => Some(ratio),
        }
    }
}

/// YaRN scaling of the rotary frequencies (arXiv 2309.00071).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Context extension factor.
    pub factor: f32,
    /// Rotations above which a frequency is kept.
    pub beta_fast: f32,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f32,
    /// Context length of the original training.
    pub original_max_position_embeddings: usize,
}

/// Why a `config.json` is refused. Each message names the field and its value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("config.json is not a DeepSeek-V4 configuration")]
    Parse(#[source] serde_json::Error),
    /// One or more fields have impossible values; all are listed.
    #[error("config.json: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// `config.json` as written.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "one")]
    num_key_value_heads: usize,
    head_dim: usize,
    qk_rope_head_dim: usize,
    q_lora_rank: usize,
    o_groups: usize,
    o_lora_rank: usize,
    n_routed_experts: usize,
    #[serde(default = "one")]
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    num_hash_layers: usize,
    routed_scaling_factor: f32,
    scoring_func: String,
    swiglu_limit: f32,
    sliding_window: usize,
    index_n_heads: usize,
    index_head_dim: usize,
    index_topk: usize,
    compress_ratios: Vec<usize>,
    rope_theta: f32,
    compress_rope_theta: f32,
    rope_scaling: Option<RawRopeScaling>,
    max_position_embeddings: usize,
    hc_mult: usize,
    hc_sinkhorn_iters: usize,
    hc_eps: f32,
    rms_norm_eps: f32,
    bos_token_id: u32,
    eos_token_id: u32,
}

#[derive(Deserialize)]
struct RawRopeScaling {
    factor: f32,
    #[serde(default = "beta_fast")]
    beta_fast: f32,
    #[serde(default = "beta_slow")]
    beta_slow: f32,
    original_max_position_embeddings: usize,
}

fn one() -> usize {
    1
}

fn beta_fast() -> f32 {
    32.0
}

fn beta_slow() -> f32 {
    1.0
}

// === impl ModelConfig ===

impl ModelConfig {
    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Parse`] when it is not a V4 configuration, [`Error::Invalid`] with every impossible value.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let raw: RawConfig = serde_json::from_str(text).map_err(Error::Parse)?;
        let faults = raw.faults();
        if faults.is_empty() { Ok(raw.resolve()) } else { Err(Error::Invalid(faults)) }
    }

    /// Whether experts of `layer` are chosen by token id.
    #[must_use]
    pub fn is_hash_layer(&self, layer: usize) -> bool {
        layer < self.num_hash_layers
    }
}

// === impl RawConfig ===

impl RawConfig {
    /// Every impossible value, one sentence each.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.size_faults();
        faults.extend(self.kind_faults());
        faults.extend(self.relation_faults());
        faults
    }

    fn size_faults(&self) -> Vec<String> {
        /// Larger than any plausible model; products of two such sizes still fit in 64 bits.
        const SIZE_MAX: usize = 1 << 28;
        [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim", self.head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("q_lora_rank", self.q_lora_rank),
            ("o_groups", self.o_groups),
            ("o_lora_rank", self.o_lora_rank),
            ("n_routed_experts", self.n_routed_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("sliding_window", self.sliding_window),
            ("index_n_heads", self.index_n_heads),
            ("index_head_dim", self.index_head_dim),
            ("index_topk", self.index_topk),
            ("max_position_embeddings", self.max_position_embeddings),
            ("hc_mult", self.hc_mult),
            ("hc_sinkhorn_iters", self.hc_sinkhorn_iters),
        ]
        .into_iter()
        .filter(|(_, value)| !(1..=SIZE_MAX).contains(value))
        .map(|(name, value)| format!("{name} is {value}, which must be between 1 and {SIZE_MAX}"))
        .collect()
    }

    fn kind_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        check(
            self.model_type == "deepseek_v4",
            format!("model_type is {:?}, only \"deepseek_v4\" is supported", self.model_type),
        );
        check(
            self.scoring_func == "sqrtsoftplus",
            format!("scoring_func is {:?}, only \"sqrtsoftplus\" is supported", self.scoring_func),
        );
        for (name, value) in [
            ("num_key_value_heads", self.num_key_value_heads),
            ("n_shared_experts", self.n_shared_experts),
        ] {
            check(value == 1, format!("{name} is {value}, only 1 is supported"));
        }
        for (name, value) in [
            ("routed_scaling_factor", self.routed_scaling_factor),
            ("rope_theta", self.rope_theta),
            ("compress_rope_theta", self.compress_rope_theta),
            ("hc_eps", self.hc_eps),
            ("rms_norm_eps", self.rms_norm_eps),
        ] {
            check(
                value.is_finite() && value > 0.0,
                format!("{name} is {value}, which must be positive"),
            );
        }
        check(
            self.swiglu_limit.is_finite() && self.swiglu_limit >= 0.0,
            format!("swiglu_limit is {}, which must not be negative", self.swiglu_limit),
        );
        if let Some(yarn) = &self.rope_scaling {
            check(
                yarn.factor.is_finite()
                    && yarn.factor >= 1.0
                    && yarn.original_max_position_embeddings > 0,
                format!(
                    "rope_scaling has factor {} and original_max_position_embeddings {}, which must be >= 1",
                    yarn.factor, yarn.original_max_position_embeddings
                ),
            );
        }
        faults
    }

    fn relation_faults(&self) -> Vec<String> {
        let relations = [
            (
                self.qk_rope_head_dim <= self.head_dim.min(self.index_head_dim)
                    && self.qk_rope_head_dim.is_multiple_of(2),
                "qk_rope_head_dim must be even and fit in head_dim and index_head_dim",
            ),
            (
                self.o_groups > 0 && self.num_attention_heads.is_multiple_of(self.o_groups),
                "num_attention_heads must be a multiple of o_groups",
            ),
            (
                self.num_experts_per_tok <= self.n_routed_experts,
                "num_experts_per_tok must not exceed n_routed_experts",
            ),
            (
                self.num_hash_layers <= self.num_hidden_layers,
                "num_hash_layers must not exceed num_hidden_layers",
            ),
            (
                self.compress_ratios.len() >= self.num_hidden_layers,
                "compress_ratios needs one entry per layer",
            ),
            (
                self.compress_ratios.iter().all(|&ratio| ratio <= self.max_position_embeddings),
                "compress_ratios must not exceed max_position_embeddings",
            ),
            (
                self.index_head_dim.is_power_of_two(),
                "index_head_dim must be a power of two (Hadamard transform)",
            ),
            (
                (self.bos_token_id as usize) < self.vocab_size
                    && (self.eos_token_id as usize) < self.vocab_size,
                "bos_token_id and eos_token_id must be below vocab_size",
            ),
        ];
        relations.iter().filter(|(ok, _)| !ok).map(|(_, fault)| (*fault).to_owned()).collect()
    }

    fn resolve(self) -> ModelConfig {
        let layers = self.compress_ratios[..self.num_hidden_layers]
            .iter()
            .map(|&ratio| match ratio {
                0 => AttentionKind::SlidingWindow,
                4 => AttentionKind::Csa { ratio },
                _ => AttentionKind::Hca { ratio },
            })
            .collect();
        ModelConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            head_dim: self.head_dim,
            qk_rope_head_dim: self.qk_rope_head_dim,
            q_lora_rank: self.q_lora_rank,
            o_groups: self.o_groups,
            o_lora_rank: self.o_lora_rank,
            n_routed_experts: self.n_routed_experts,
            num_experts_per_tok: self.num_experts_per_tok,
            moe_intermediate_size: self.moe_intermediate_size,
            num_hash_layers: self.num_hash_layers,
            routed_scaling_factor: self.routed_scaling_factor,
            swiglu_limit: self.swiglu_limit,
            sliding_window: self.sliding_window,
            index_n_heads: self.index_n_heads,
            index_head_dim: self.index_head_dim,
            index_topk: self.index_topk,
            layers,
            rope_theta: self.rope_theta,
            compress_rope_theta: self.compress_rope_theta,
            yarn: self.rope_scaling.map(|raw| Yarn {
                factor: raw.factor,
                beta_fast: raw.beta_fast,
                beta_slow: raw.beta_slow,
                original_max_position_embeddings: raw.original_max_position_embeddings,
            }),
            max_position_embeddings: self.max_position_embeddings,
            hc_mult: self.hc_mult,
            hc_sinkhorn_iters: self.hc_sinkhorn_iters,
            hc_eps: self.hc_eps,
            rms_norm_eps: self.rms_norm_eps,
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_id,
        }
    }
}
