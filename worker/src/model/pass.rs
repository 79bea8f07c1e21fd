//! One step on its way through the layers.

use switchyard_moe::config::{AttentionKind, ModelConfig};
use tokio::time::Instant;

use super::load::LayerWeights;
use crate::backend::{Backend, HyperWeights};
use crate::kv_cache::Span;
use crate::sampler::Samplers;
use crate::step::StepTimings;

/// Tensors that every step uses again, one row per token.
#[derive(Debug)]
pub(super) struct Workspace<B: Backend> {
    /// Residual streams side by side, `[rows, hc_mult * hidden]`.
    pub(super) streams: B::Tensor,
    /// Mixing coefficients of the sublayer under way.
    pub(super) mix: B::Mix,
    /// Input of a sublayer, normed, `[rows, hidden]`.
    pub(super) x: B::Tensor,
    /// Output of a sublayer, `[rows, hidden]`.
    pub(super) y: B::Tensor,
    pub(super) attention: AttentionTensors<B>,
    pub(super) moe: MoeTensors<B>,
    /// Rows that go through the head.
    pub(super) picked: B::Tensor,
    pub(super) logits: B::Tensor,
}

#[derive(Debug)]
pub(super) struct AttentionTensors<B: Backend> {
    pub(super) q_latent: B::Tensor,
    pub(super) q: B::Tensor,
    pub(super) kv: B::Tensor,
    pub(super) entry_kv: B::Tensor,
    pub(super) entry_score: B::Tensor,
    pub(super) index_kv: B::Tensor,
    pub(super) index_score: B::Tensor,
    pub(super) index_q: B::Tensor,
    pub(super) index_weights: B::Tensor,
    pub(super) selection: B::Selection,
    pub(super) out: B::Tensor,
    pub(super) out_latent: B::Tensor,
}

#[derive(Debug)]
pub(super) struct MoeTensors<B: Backend> {
    pub(super) routing: B::Routing,
    pub(super) received: B::Received,
    pub(super) gate: B::Tensor,
    pub(super) up: B::Tensor,
    /// One per rank.
    pub(super) outbound: Vec<B::Buffer>,
    /// One per rank.
    pub(super) inbound: Vec<B::Buffer>,
}

/// One step under way.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) config: &'a ModelConfig,
    pub(super) work: &'a mut Workspace<B>,
    /// Token of each row.
    pub(super) ids: &'a [u32],
    pub(super) spans: &'a [Span<'a>],
    pub(super) samplers: &'a mut Samplers,
    pub(super) timings: StepTimings,
    /// See [`StepResult::expert_rows`](crate::step::StepResult::expert_rows).
    pub(super) expert_rows: Vec<u32>,
    /// Whether [`clock`](Self::clock) waits for the device.
    pub(super) waits: bool,
}

// === impl Workspace ===

impl<B: Backend> Workspace<B> {
    pub(super) fn new(backend: &B, c: &ModelConfig) -> Self {
        let streams = c.hc_mult * c.hidden_size;
        // Compressor rows hold two halves on CSA layers, one on HCA layers; the op that writes them sets the width.
        let (entry, index) = (2 * c.head_dim, 2 * c.index_head_dim);
        Self {
            streams: backend.tensor(streams),
            mix: backend.mix(),
            x: backend.tensor(c.hidden_size),
            y: backend.tensor(c.hidden_size),
            attention: AttentionTensors {
                q_latent: backend.tensor(c.q_lora_rank),
                q: backend.tensor(c.num_attention_heads * c.head_dim),
                kv: backend.tensor(c.head_dim),
                entry_kv: backend.tensor(entry),
                entry_score: backend.tensor(entry),
                index_kv: backend.tensor(index),
                index_score: backend.tensor(index),
                index_q: backend.tensor(c.index_n_heads * c.index_head_dim),
                index_weights: backend.tensor(c.index_n_heads),
                selection: backend.selection(),
                out: backend.tensor(c.num_attention_heads * c.head_dim),
                out_latent: backend.tensor(c.o_groups * c.o_lora_rank),
            },
            moe: MoeTensors {
                routing: backend.routing(),
                received: backend.received(),
                gate: backend.tensor(c.moe_intermediate_size),
                up: backend.tensor(c.moe_intermediate_size),
                outbound: Vec::new(),
                inbound: Vec::new(),
            },
            picked: backend.tensor(streams),
            logits: backend.tensor(c.vocab_size),
        }
    }
}

// === impl Pass ===

impl<B: Backend> Pass<'_, B> {
    /// The time at which a phase ends or begins.
    pub(super) fn clock(&mut self) -> Instant {
        if self.waits {
            self.backend.wait();
        }
        Instant::now()
    }

    /// Embeds the step's tokens.
    pub(super) fn begin(&mut self, embed: &B::Matrix, world_size: usize) {
        self.backend.begin_step(self.spans);
        self.backend.embed(embed, self.ids, &mut self.work.streams);
        let MoeTensors { outbound, inbound, .. } = &mut self.work.moe;
        outbound.resize_with(world_size, || self.backend.buffer());
        inbound.resize_with(world_size, || self.backend.buffer());
    }

    /// The attention sublayer with the mixing around it.
    pub(super) fn attention_block(
        &mut self,
        weights: &LayerWeights<B>,
        cache: &mut B::Cache,
        kind: AttentionKind,
    ) {
        let start = self.clock();
        if !self.ids.is_empty() {
            self.enter(&weights.hyper_attention, &weights.attention_norm);
            self.attention(&weights.attention, cache, kind);
            self.leave();
        }
        self.timings.attention += (self.clock() - start).as_secs_f64();
    }

    /// Collapses the streams into the normed input of a sublayer.
    pub(super) fn enter(&mut self, hyper: &HyperWeights<B>, norm: &B::Vector) {
        let work = &mut *self.work;
        self.backend.hyper_pre(hyper, &work.streams, &mut work.mix, &mut work.x);
        self.backend.norm(norm, &mut work.x);
    }

    /// Spreads the output of a sublayer over the streams.
    pub(super) fn leave(&mut self) {
        let work = &mut *self.work;
        self.backend.hyper_post(&work.y, &work.mix, &mut work.streams);
    }
}
