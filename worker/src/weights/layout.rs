//! The tensors of a model, in the names of the released checkpoints.

use switchyard_moe::config::{AttentionKind, ModelConfig};
use switchyard_moe::ids::LogicalExpertId;

use super::Error;

/// How a tensor may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A matrix as F32, BF16, FP8 with scales or FP4 with scales.
    Quantizable,
    /// F32 or BF16.
    Float,
    /// I64, each the id of a routed expert.
    ExpertIds,
}

/// One tensor that a model consists of; scales go with their weight.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
}

/// Whether `name` may be in a checkpoint without being used: draft modules (with their copies of embedding and head).
pub(super) fn is_ignored(name: &str) -> bool {
    name.starts_with("mtp.")
}

/// Layer and expert of a routed expert's tensor.
pub(super) fn routed_expert(name: &str) -> Option<(usize, LogicalExpertId)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (expert, _) = rest.strip_prefix("ffn.experts.")?.split_once('.')?;
    Some((layer.parse().ok()?, LogicalExpertId(expert.parse().ok()?)))
}

/// Calls `visit` with every tensor of the model and stops at the first error.
///
/// A visitor instead of a list: sizes in a hostile `config.json` must not become allocations.
pub(super) fn for_each_tensor(
    config: &ModelConfig,
    visit: &mut dyn FnMut(Expected) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut walk = Walk { config, visit };
    let (hidden, streams) = (config.hidden_size, config.hc_mult);
    walk.float("embed.weight", &[config.vocab_size, hidden])?;
    for (layer, &kind) in config.layers.iter().enumerate() {
        walk.layer(layer, kind)?;
    }
    walk.float("hc_head_fn", &[streams, streams * hidden])?;
    walk.float("hc_head_base", &[streams])?;
    walk.float("hc_head_scale", &[1])?;
    walk.float("norm.weight", &[hidden])?;
    walk.float("head.weight", &[config.vocab_size, hidden])
}

struct Walk<'a> {
    config: &'a ModelConfig,
    visit: &'a mut dyn FnMut(Expected) -> Result<(), Error>,
}

impl Walk<'_> {
    fn float(&mut self, name: &str, shape: &[usize]) -> Result<(), Error> {
        self.visit(name.to_owned(), shape, Kind::Float)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<(), Error> {
        self.visit(format!("{name}.weight"), &[rows, cols], Kind::Quantizable)
    }

    fn visit(&mut self, name: String, shape: &[usize], kind: Kind) -> Result<(), Error> {
        (self.visit)(Expected { name, shape: shape.to_vec(), kind })
    }

    fn layer(&mut self, layer: usize, kind: AttentionKind) -> Result<(), Error> {
        let prefix = format!("layers.{layer}");
        let hidden = self.config.hidden_size;
        for sublayer in ["attn", "ffn"] {
            self.float(&format!("{prefix}.{sublayer}_norm.weight"), &[hidden])?;
            let streams = self.config.hc_mult;
            let mixes = streams * (streams + 2);
            self.float(&format!("{prefix}.hc_{sublayer}_fn"), &[mixes, streams * hidden])?;
            self.float(&format!("{prefix}.hc_{sublayer}_base"), &[mixes])?;
            self.float(&format!("{prefix}.hc_{sublayer}_scale"), &[3])?;
        }
        self.attention(&format!("{prefix}.attn"), kind)?;
        self.moe(&format!("{prefix}.ffn"), self.config.is_hash_layer(layer))
    }

    fn attention(&mut self, prefix: &str, kind: AttentionKind) -> Result<(), Error> {
        let c = self.config;
        let (heads, head_dim) = (c.num_attention_heads, c.head_dim);
        self.float(&format!("{prefix}.attn_sink"), &[heads])?;
        self.float(&format!("{prefix}.q_norm.weight"), &[c.q_lora_rank])?;
        self.float(&format!("{prefix}.kv_norm.weight"), &[head_dim])?;
        self.matrix(&format!("{prefix}.wq_a"), c.q_lora_rank, c.hidden_size)?;
        self.matrix(&format!("{prefix}.wq_b"), heads * head_dim, c.q_lora_rank)?;
        self.matrix(&format!("{prefix}.wkv"), head_dim, c.hidden_size)?;
        let latent = c.o_groups * c.o_lora_rank;
        self.matrix(&format!("{prefix}.wo_a"), latent, heads / c.o_groups * head_dim)?;
        self.matrix(&format!("{prefix}.wo_b"), c.hidden_size, latent)?;
        match kind {
            AttentionKind::SlidingWindow => Ok(()),
            AttentionKind::Hca { ratio } => {
                self.compressor(&format!("{prefix}.compressor"), (ratio, 1), head_dim)
            }
            AttentionKind::Csa { ratio } => {
                self.compressor(&format!("{prefix}.compressor"), (ratio, 2), head_dim)?;
                let prefix = format!("{prefix}.indexer");
                let (heads, head_dim) = (c.index_n_heads, c.index_head_dim);
                self.compressor(&format!("{prefix}.compressor"), (ratio, 2), head_dim)?;
                self.matrix(&format!("{prefix}.wq_b"), heads * head_dim, c.q_lora_rank)?;
                self.float(&format!("{prefix}.weights_proj.weight"), &[heads, c.hidden_size])
            }
        }
    }

    fn compressor(
        &mut self,
        prefix: &str,
        (ratio, halves): (usize, usize),
        head_dim: usize,
    ) -> Result<(), Error> {
        let (width, hidden) = (halves * head_dim, self.config.hidden_size);
        self.float(&format!("{prefix}.ape"), &[ratio, width])?;
        self.float(&format!("{prefix}.norm.weight"), &[head_dim])?;
        self.float(&format!("{prefix}.wkv.weight"), &[width, hidden])?;
        self.float(&format!("{prefix}.wgate.weight"), &[width, hidden])
    }

    fn moe(&mut self, prefix: &str, hashed: bool) -> Result<(), Error> {
        let c = self.config;
        self.float(&format!("{prefix}.gate.weight"), &[c.n_routed_experts, c.hidden_size])?;
        if hashed {
            let shape = [c.vocab_size, c.num_experts_per_tok];
            self.visit(format!("{prefix}.gate.tid2eid"), &shape, Kind::ExpertIds)?;
        } else {
            self.float(&format!("{prefix}.gate.bias"), &[c.n_routed_experts])?;
        }
        self.mlp(&format!("{prefix}.shared_experts"))?;
        (0..c.n_routed_experts)
            .try_for_each(|expert| self.mlp(&format!("{prefix}.experts.{expert}")))
    }

    fn mlp(&mut self, prefix: &str) -> Result<(), Error> {
        let (hidden, inner) = (self.config.hidden_size, self.config.moe_intermediate_size);
        self.matrix(&format!("{prefix}.w1"), inner, hidden)?;
        self.matrix(&format!("{prefix}.w2"), hidden, inner)?;
        self.matrix(&format!("{prefix}.w3"), inner, hidden)
    }
}
