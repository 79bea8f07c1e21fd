//! The parameters, from the checkpoint's names to the device.

use switchyard_moe::config::{AttentionKind, ModelConfig};
use switchyard_moe::ids::EpRank;
use switchyard_moe::placement::Placement;

use crate::backend::{
    Backend, CompressorWeights, GateChoice, GateWeights, HyperWeights, MlpWeights,
};
use crate::weights::{Error, Source};

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes_done: u64,
    /// Bytes that this rank reads in all.
    pub bytes_total: u64,
}

/// Parameters outside the layers.
#[derive(Debug)]
pub(super) struct ModelWeights<B: Backend> {
    pub(super) embed: B::Matrix,
    pub(super) hyper_head: HyperWeights<B>,
    pub(super) norm: B::Vector,
    pub(super) head: B::Matrix,
}

/// Parameters of a layer, without its routed experts.
#[derive(Debug)]
pub(super) struct LayerWeights<B: Backend> {
    pub(super) hyper_attention: HyperWeights<B>,
    pub(super) attention_norm: B::Vector,
    pub(super) attention: AttentionWeights<B>,
    pub(super) hyper_moe: HyperWeights<B>,
    pub(super) moe_norm: B::Vector,
    pub(super) gate: GateWeights<B>,
    pub(super) shared: MlpWeights<B::Matrix>,
}

#[derive(Debug)]
pub(super) struct AttentionWeights<B: Backend> {
    pub(super) wq_a: B::Matrix,
    pub(super) q_norm: B::Vector,
    pub(super) wq_b: B::Matrix,
    pub(super) wkv: B::Matrix,
    pub(super) kv_norm: B::Vector,
    pub(super) sinks: B::Vector,
    pub(super) wo_a: B::Matrix,
    pub(super) wo_b: B::Matrix,
    pub(super) compressor: Option<CompressorWeights<B>>,
    pub(super) indexer: Option<IndexerWeights<B>>,
}

#[derive(Debug)]
pub(super) struct IndexerWeights<B: Backend> {
    pub(super) wq_b: B::Matrix,
    pub(super) weights_proj: B::Matrix,
    pub(super) compressor: CompressorWeights<B>,
}

/// Reads one rank's parameters.
pub(super) struct Loader<'a, B> {
    backend: &'a B,
    checkpoint: &'a dyn Source,
    rank: EpRank,
    placement: &'a Placement,
    progress: &'a mut dyn FnMut(Progress),
    done: Progress,
}

// === impl Loader ===

impl<'a, B: Backend> Loader<'a, B> {
    pub(super) fn new(
        backend: &'a B,
        checkpoint: &'a dyn Source,
        (rank, placement): (EpRank, &'a Placement),
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let bytes_total = checkpoint.num_bytes_for(rank, placement);
        let done = Progress { bytes_done: 0, bytes_total };
        progress(done);
        Self { backend, checkpoint, rank, placement, progress, done }
    }

    pub(super) fn model(&mut self) -> Result<ModelWeights<B>, Error> {
        Ok(ModelWeights {
            embed: self.matrix("embed")?,
            hyper_head: self.hyper("hc_head")?,
            norm: self.vector("norm.weight")?,
            head: self.matrix("head")?,
        })
    }

    pub(super) fn layer(&mut self, layer: usize) -> Result<LayerWeights<B>, Error> {
        let prefix = format!("layers.{layer}");
        Ok(LayerWeights {
            hyper_attention: self.hyper(&format!("{prefix}.hc_attn"))?,
            attention_norm: self.vector(&format!("{prefix}.attn_norm.weight"))?,
            attention: self.attention(&format!("{prefix}.attn"), self.config().layers[layer])?,
            hyper_moe: self.hyper(&format!("{prefix}.hc_ffn"))?,
            moe_norm: self.vector(&format!("{prefix}.ffn_norm.weight"))?,
            gate: self.gate(&format!("{prefix}.ffn.gate"), self.config().is_hash_layer(layer))?,
            shared: self.mlp(&format!("{prefix}.ffn.shared_experts"))?,
        })
    }

    /// The routed experts of `layer` in this rank's slots.
    pub(super) fn experts(&mut self, layer: usize) -> Result<B::Experts, Error> {
        let slots = self.placement.layers()[layer].experts_of(self.rank);
        let slots = slots
            .iter()
            .map(|expert| {
                let load = |id| self.mlp(&format!("layers.{layer}.ffn.experts.{id}"));
                expert.map(load).transpose()
            })
            .collect::<Result<_, _>>()?;
        Ok(self.backend.experts(slots))
    }

    fn config(&self) -> &'a ModelConfig {
        self.checkpoint.config()
    }

    fn attention(
        &mut self,
        prefix: &str,
        kind: AttentionKind,
    ) -> Result<AttentionWeights<B>, Error> {
        let compressor = match kind {
            AttentionKind::SlidingWindow => None,
            AttentionKind::Csa { .. } | AttentionKind::Hca { .. } => {
                Some(self.compressor(&format!("{prefix}.compressor"))?)
            }
        };
        let indexer = match kind {
            AttentionKind::Csa { .. } => Some(self.indexer(&format!("{prefix}.indexer"))?),
            AttentionKind::SlidingWindow | AttentionKind::Hca { .. } => None,
        };
        let wo_a = self.checkpoint.matrix(&format!("{prefix}.wo_a.weight"))?;
        let wo_a_bytes = wo_a.data.num_bytes();
        let wo_a = self.backend.grouped_matrix(wo_a, self.config().o_groups);
        self.advance(wo_a_bytes);
        Ok(AttentionWeights {
            wq_a: self.matrix(&format!("{prefix}.wq_a"))?,
            q_norm: self.vector(&format!("{prefix}.q_norm.weight"))?,
            wq_b: self.matrix(&format!("{prefix}.wq_b"))?,
            wkv: self.matrix(&format!("{prefix}.wkv"))?,
            kv_norm: self.vector(&format!("{prefix}.kv_norm.weight"))?,
            sinks: self.vector(&format!("{prefix}.attn_sink"))?,
            wo_a,
            wo_b: self.matrix(&format!("{prefix}.wo_b"))?,
            compressor,
            indexer,
        })
    }

    fn compressor(&mut self, prefix: &str) -> Result<CompressorWeights<B>, Error> {
        Ok(CompressorWeights {
            wkv: self.matrix(&format!("{prefix}.wkv"))?,
            wgate: self.matrix(&format!("{prefix}.wgate"))?,
            ape: self.vector(&format!("{prefix}.ape"))?,
            norm: self.vector(&format!("{prefix}.norm.weight"))?,
        })
    }

    fn indexer(&mut self, prefix: &str) -> Result<IndexerWeights<B>, Error> {
        Ok(IndexerWeights {
            wq_b: self.matrix(&format!("{prefix}.wq_b"))?,
            weights_proj: self.matrix(&format!("{prefix}.weights_proj"))?,
            compressor: self.compressor(&format!("{prefix}.compressor"))?,
        })
    }

    fn gate(&mut self, prefix: &str, hashed: bool) -> Result<GateWeights<B>, Error> {
        let choice = if hashed {
            let ids = self.checkpoint.expert_ids(&format!("{prefix}.tid2eid"))?;
            self.advance(ids.len() * size_of::<i64>());
            GateChoice::Hash(self.backend.id_table(ids))
        } else {
            GateChoice::Score(self.vector(&format!("{prefix}.bias"))?)
        };
        Ok(GateWeights { weight: self.matrix(prefix)?, choice })
    }

    fn mlp(&mut self, prefix: &str) -> Result<MlpWeights<B::Matrix>, Error> {
        Ok(MlpWeights {
            w1: self.matrix(&format!("{prefix}.w1"))?,
            w2: self.matrix(&format!("{prefix}.w2"))?,
            w3: self.matrix(&format!("{prefix}.w3"))?,
        })
    }

    fn hyper(&mut self, prefix: &str) -> Result<HyperWeights<B>, Error> {
        Ok(HyperWeights {
            function: self.matrix_of(&format!("{prefix}_fn"))?,
            base: self.vector(&format!("{prefix}_base"))?,
            scale: self.vector(&format!("{prefix}_scale"))?,
        })
    }

    fn matrix(&mut self, name: &str) -> Result<B::Matrix, Error> {
        self.matrix_of(&format!("{name}.weight"))
    }

    fn matrix_of(&mut self, tensor: &str) -> Result<B::Matrix, Error> {
        let source = self.checkpoint.matrix(tensor)?;
        let matrix = self.backend.matrix(source);
        self.advance(source.data.num_bytes());
        Ok(matrix)
    }

    fn vector(&mut self, name: &str) -> Result<B::Vector, Error> {
        let data = self.checkpoint.floats(name)?;
        self.advance(self.checkpoint.num_bytes_of(name));
        Ok(self.backend.vector(data))
    }

    fn advance(&mut self, num_bytes: usize) {
        self.done.bytes_done += num_bytes as u64;
        (self.progress)(self.done);
    }
}
