//! DeepSeek-V4, written once over [`Backend`]. One [`RankModel`] is one rank's share of the model and of its state.
//!
//! In the order in which a step passes through:
//! - [`load`]: the parameters, from the checkpoint.
//! - `pass`: the tensors of one step, and the mixing of residual streams around each sublayer.
//! - `attention`: window, compressor, indexer, output projection.
//! - `moe`: gate, dispatch, experts, combine.
//! - `head`: logits and samples.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::{BlockId, EpRank, SequenceId, StepId};
use switchyard_moe::placement::Placement;
use tokio::time::Instant;

use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, DeviceError, Numerics};
use crate::collective::{self, AllToAll};
use crate::experts::Routes;
use crate::kv_cache::{self, CacheLimits, LayerLayout, Sequence, Sequences, Span, num_tokens};
use crate::sampler::Samplers;
use crate::step::{ChunkTokens, SequenceStart, StepBatch, StepResult, StepTimings};
use crate::weights::{self, Source};

pub mod load;
mod attention;
mod head;
mod moe;
mod pass;
#[cfg(test)]
mod tests;

pub use load::Progress;

use head::Rows;
use load::{LayerWeights, Loader, ModelWeights};
use pass::{Pass, Workspace};

/// What a rank is to be.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Its number in the group.
    pub rank: EpRank,
    /// Where every expert lives.
    pub placement: Placement,
    /// How to compute.
    pub numerics: Numerics,
    /// Sizes of its state.
    pub limits: CacheLimits,
    /// Threads to compute with.
    pub num_threads: NonZeroUsize,
    /// How long devices may wait for each other in one exchange.
    pub exchange_deadline: Duration,
}

/// Why a rank cannot load, or a step cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint is refused.
    #[error("cannot load the checkpoint")]
    Checkpoint(#[from] weights::Error),
    /// The device is refused.
    #[error("cannot set up the device")]
    Device(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The placement is another model's or group's.
    #[error("the placement does not fit: {0}")]
    Placement(String),
    /// The batch is impossible; the rank's state is as before.
    #[error("step {step} cannot run")]
    Batch {
        /// The step.
        step: StepId,
        /// Why.
        #[source]
        source: kv_cache::Error,
    },
    /// The device failed.
    #[error("step {step} was not computed")]
    Fault {
        /// The step.
        step: StepId,
        /// What the device reported.
        #[source]
        source: DeviceError,
    },
    /// An exchange failed. The step is undone; sequences that cannot be set back are dropped.
    #[error("step {step} failed")]
    Collective {
        /// The step.
        step: StepId,
        /// Which peer, and where.
        #[source]
        source: collective::Error,
    },
}

/// One rank of a model: all that is replicated, its share of the experts, and the state of its sequences.
#[derive(Debug)]
pub struct RankModel<B: Backend = CpuBackend> {
    rank: EpRank,
    config: ModelConfig,
    backend: B,
    weights: ModelWeights<B>,
    layers: Vec<Layer<B>>,
    sequences: Sequences,
    samplers: Samplers,
    work: Workspace<B>,
    /// Whether each phase waits for the device, so that its time is its own.
    waits: bool,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    weights: LayerWeights<B>,
    experts: B::Experts,
    num_slots: usize,
    routes: B::Routes,
    cache: B::Cache,
}

// === impl RankModel ===

impl RankModel<CpuBackend> {
    /// Reads what rank `options.rank` needs of `checkpoint`; `progress` hears of every tensor.
    ///
    /// # Errors
    /// When the placement does not fit the model, or the processor refuses.
    pub fn load(
        checkpoint: &dyn Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let backend = CpuBackend::new(checkpoint.config(), options.numerics, options.num_threads)
            .map_err(|error| Error::Device(Arc::new(error)))?;
        Self::load_on(backend, checkpoint, options, progress)
    }
}

impl<B: Backend> RankModel<B> {
    /// [`load`](RankModel::load) onto a given device. All of it is there when this returns.
    ///
    /// # Errors
    /// When the placement does not fit the model, or the device has no room for it.
    pub fn load_on(
        backend: B,
        checkpoint: &dyn Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        check_placement(&config, options.rank, &options.placement)?;
        let mut loader =
            Loader::new(&backend, checkpoint, (options.rank, &options.placement), progress);
        let weights = loader.model()?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for (index, (&kind, placement)) in
            config.layers.iter().zip(options.placement.layers()).enumerate()
        {
            let layout = LayerLayout::new(&config, kind, &options.limits);
            layers.push(Layer {
                weights: loader.layer(index)?,
                experts: loader.experts(index)?,
                num_slots: placement.slots_per_rank(),
                routes: backend.routes(Routes::new(
                    placement,
                    config.n_routed_experts,
                    options.rank,
                )),
                cache: backend.cache(&layout),
            });
        }
        backend.finish_load().map_err(|error| Error::Device(error.0))?;
        let work = Workspace::new(&backend, &config);
        let sequences = Sequences::new(options.limits);
        let samplers = Samplers::new(&config, checkpoint.tokenizer());
        Ok(Self {
            rank: options.rank,
            config,
            backend,
            weights,
            layers,
            sequences,
            samplers,
            work,
            waits: false,
        })
    }

    /// Takes another place in the group: drops all sequences and reads the experts of the new placement. Each layer's old
    /// experts are freed before its new ones are read: a device need not hold both.
    ///
    /// # Errors
    /// [`Error::Placement`] when the placement does not fit the model, with nothing changed. After any other error the
    /// model is of no use.
    pub fn place(
        &mut self,
        checkpoint: &dyn Source,
        rank: EpRank,
        placement: &Placement,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        check_placement(&self.config, rank, placement)?;
        self.clear();
        self.rank = rank;
        let mut loader = Loader::new(&self.backend, checkpoint, (rank, placement), progress);
        let layers = self.layers.iter_mut().zip(placement.layers());
        for (index, (layer, placement)) in layers.enumerate() {
            layer.experts = self.backend.experts(Vec::new());
            layer.experts = loader.experts(index)?;
            layer.num_slots = placement.slots_per_rank();
            let routes = Routes::new(placement, self.config.n_routed_experts, rank);
            layer.routes = self.backend.routes(routes);
        }
        self.backend.finish_load().map_err(|error| Error::Device(error.0))
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// This rank.
    pub fn rank(&self) -> EpRank {
        self.rank
    }

    /// Sequences that live here.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The sequence `id`, if it lives here.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(id)
    }

    /// Drops all sequences.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.samplers.clear();
    }

    /// Begins a sequence at a position that nothing was computed up to; see [`Sequences::pretend`]. For measurements.
    ///
    /// # Errors
    /// As [`Sequences::pretend`].
    pub fn pretend(
        &mut self,
        id: SequenceId,
        num_tokens: usize,
        blocks: Vec<BlockId>,
    ) -> Result<(), kv_cache::Error> {
        self.sequences.pretend(id, num_tokens, blocks)?;
        self.samplers.begin(id, &SequenceStart::default());
        Ok(())
    }

    /// Fills the cache with numbers that mean nothing. For measurements.
    pub fn fill_with_noise(&mut self) {
        for layer in &mut self.layers {
            self.backend.fill_with_noise(&mut layer.cache);
        }
    }

    /// Whether the phases of later steps wait for the device at their ends: their times are then their own, and
    /// the steps slower. Otherwise what a phase leaves to the device is counted where it is next waited for.
    pub fn time_phases(&mut self, waits: bool) {
        self.waits = waits;
    }

    /// Runs one step. Every rank of the group runs the same steps, with an empty batch if it has no work.
    ///
    /// # Errors
    /// [`Error::Batch`] before anything has changed; [`Error::Collective`] when a peer fails.
    pub fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
    ) -> Result<StepResult, Error> {
        self.run(step, batch, all_to_all, Rows::Sampled).map(|(result, _)| result)
    }

    /// [`step`](Self::step) that also returns the logits of every token of the batch, `[num_tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with_logits(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
    ) -> Result<(StepResult, Vec<f32>), Error> {
        self.run(step, batch, all_to_all, Rows::All)
    }

    fn run(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
        rows: Rows,
    ) -> Result<(StepResult, Vec<f32>), Error> {
        let start = Instant::now();
        self.sequences
            .admit(batch, self.config.vocab_size)
            .map_err(|source| Error::Batch { step, source })?;
        self.samplers.admit(batch);
        let computed = self
            .forward(step, batch, all_to_all, rows)
            .map_err(|source| Error::Collective { step, source });
        // A device that fails says nothing under way, and peers then find fault with what it sent.
        let computed = match self.backend.end_step() {
            Ok(()) => computed,
            Err(source) => Err(Error::Fault { step, source }),
        };
        match computed {
            Ok((mut result, logits)) => {
                self.commit(batch, &result);
                result.timings.total = start.elapsed().as_secs_f64();
                Ok((result, logits))
            }
            Err(error) => {
                self.sequences.abandon(batch);
                Err(error)
            }
        }
    }

    fn forward(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
        rows: Rows,
    ) -> Result<(StepResult, Vec<f32>), collective::Error> {
        let ids = token_ids(&self.sequences, batch);
        let spans = spans(&self.sequences, batch);
        let mut pass = Pass {
            backend: &mut self.backend,
            config: &self.config,
            work: &mut self.work,
            ids: &ids,
            spans: &spans,
            samplers: &mut self.samplers,
            timings: StepTimings::default(),
            expert_rows: Vec::new(),
            waits: self.waits,
        };
        pass.begin(&self.weights.embed, all_to_all.world_size());
        for (index, layer) in self.layers.iter_mut().enumerate() {
            pass.attention_block(&layer.weights, &mut layer.cache, self.config.layers[index]);
            pass.moe_block(step, index, layer, all_to_all)?;
        }
        let (mut result, logits) = pass.head(&self.weights, batch, rows);
        result.expert_rows = std::mem::take(&mut pass.expert_rows);
        result.timings = StepTimings { num_tokens: ids.len() as u32, ..pass.timings };
        Ok((result, logits))
    }

    fn commit(&mut self, batch: &StepBatch, result: &StepResult) {
        let mut samples = result.samples.iter().peekable();
        for chunk in &batch.chunks {
            let (id, num_tokens) = (chunk.sequence, num_tokens(&chunk.tokens));
            let sample = samples.next_if(|sample| sample.sequence == id);
            if chunk.samples && sample.is_none() {
                let last = match &chunk.tokens {
                    ChunkTokens::Ids(ids) => ids.last().copied(),
                    ChunkTokens::LastSample => {
                        self.sequences.get(id).and_then(Sequence::last_token)
                    }
                };
                self.sequences.defer(id, num_tokens, last);
            } else {
                self.sequences.commit(id, num_tokens, sample.map(|sample| sample.token_id));
            }
        }
        self.samplers.commit(&result.samples);
    }
}

/// The step's tokens, chunk by chunk. Every sequence of an admitted batch is known and has what it needs.
fn token_ids(sequences: &Sequences, batch: &StepBatch) -> Vec<u32> {
    let mut ids = Vec::new();
    for chunk in &batch.chunks {
        match &chunk.tokens {
            ChunkTokens::Ids(tokens) => ids.extend_from_slice(tokens),
            ChunkTokens::LastSample => {
                ids.extend(sequences.get(chunk.sequence).and_then(Sequence::last_token));
            }
        }
    }
    ids
}

fn spans<'a>(sequences: &'a Sequences, batch: &StepBatch) -> Vec<Span<'a>> {
    let mut first_row = 0;
    batch
        .chunks
        .iter()
        .filter_map(|chunk| {
            let sequence = sequences.get(chunk.sequence)?;
            let num_rows = num_tokens(&chunk.tokens);
            let span = Span {
                first_row,
                num_rows,
                first_position: sequence.num_tokens(),
                slot: sequence.slot(),
                blocks: sequence.blocks(),
            };
            first_row += num_rows;
            Some(span)
        })
        .collect()
}

fn check_placement(config: &ModelConfig, rank: EpRank, placement: &Placement) -> Result<(), Error> {
    let world_size = placement.world_size();
    let (layers, expected) = (placement.layers().len(), config.num_hidden_layers);
    if rank.0 as usize >= world_size {
        return Err(Error::Placement(format!("rank {rank} of {world_size}")));
    }
    if layers != expected {
        return Err(Error::Placement(format!("it has {layers} layers, the model {expected}")));
    }
    for (index, layer) in placement.layers().iter().enumerate() {
        let placed: std::collections::BTreeSet<_> =
            layer.physical_to_logical().iter().flatten().map(|expert| expert.0).collect();
        if !placed.iter().copied().eq(0..config.n_routed_experts as u32) {
            return Err(Error::Placement(format!(
                "layer {index} places {} experts, the model has {}",
                placed.len(),
                config.n_routed_experts
            )));
        }
    }
    Ok(())
}
