//! One rank's decode step: how long it takes, what it must read, and how that compares with a copy of memory.
//!
//! The weights are [`Synthetic`], the other ranks a [`LoneModel`]'s reflection, the sequences begin at the position
//! that is asked for with a cache of zeros. Time does not depend on any of it, but for which experts are hit, which is
//! counted. What is missing is the wire: rows do not leave the device.

use std::num::NonZeroUsize;

use switchyard_moe::capacity::{block_bytes, num_blocks, sequence_bytes};
use switchyard_moe::config::{AttentionKind, ModelConfig};
use switchyard_moe::ids::{BlockId, EpRank, SequenceId, StepId};
use switchyard_moe::placement::Placement;

use crate::backend::Numerics;
use crate::backend::device::Device;
use crate::backend::device::measure::{LoneModel, RowBytes, free_bytes};
use crate::collective::loopback::Census;
use crate::kv_cache::{self, CacheLimits};
use crate::model::{self, LoadOptions, Progress};
use crate::options::EXCHANGE_DEADLINE;
use crate::step::{ChunkTokens, SequenceChunk, StepBatch, StepTimings};
use crate::weights::{self, Source as _, Synthetic};

#[cfg(test)]
pub(crate) mod tests;

/// Steps before the clock runs. Memory grows in the first, which also counts experts.
const NUM_WARM_UPS: usize = 2;
/// Steps whose phases wait for the device.
const NUM_PHASE_STEPS: usize = 2;
/// Of a device's memory, what tensors of a step and copies may need.
const RESERVED_BYTES: u64 = 6 << 30;
/// Cache where the device's memory is not known, unless asked for more.
const CACHE_BYTES_DEFAULT: u64 = 8 << 30;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to compute.
    pub device: Device,
    /// How to compute.
    pub numerics: Numerics,
    /// Threads, on a processor.
    pub num_threads: NonZeroUsize,
    /// The model.
    pub config: ModelConfig,
    /// Ranks that share the experts; one of them is measured.
    pub num_ranks: NonZeroUsize,
    /// Sequences of the rank.
    pub batches: Vec<usize>,
    /// Tokens before the one that is decoded.
    pub contexts: Vec<usize>,
    /// Steps that are timed.
    pub num_steps: NonZeroUsize,
    /// Most bytes of KV cache; `None` for what the device has left.
    pub cache_bytes_max: Option<u64>,
    /// Bytes of the copy that the time is compared with.
    pub copy_bytes: usize,
}

/// What there is to tell while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// Weights are on their way to the device.
    Loading(Progress),
    /// Another row of the report.
    Row(&'a Report, &'a Row),
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of weights on the rank.
    pub weight_bytes: u64,
    /// Bytes per second, read and written, of a copy in the device's memory.
    pub copy_bandwidth: f64,
    /// One per batch and context.
    pub rows: Vec<Row>,
}

/// One batch at one context.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Sequences of the rank.
    pub batch: usize,
    /// Tokens before the one that is decoded.
    pub context: usize,
    /// What came out.
    pub outcome: Outcome,
}

/// See [`Row`].
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran.
    Measured(Measured),
    /// The cache has no room.
    NoRoom {
        /// Bytes of cache that it takes.
        cache_bytes: u64,
    },
}

/// A step's times and bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Of a step, the median.
    pub seconds: f64,
    /// Of the fastest step.
    pub seconds_min: f64,
    /// Mean times of steps whose phases wait for the device, which are slower.
    pub phases: StepTimings,
    /// What a step reads.
    pub traffic: Traffic,
    /// Rows times experts of a layer, mean.
    pub num_assignments: f64,
    /// Experts of a layer that had rows, mean.
    pub num_hit: f64,
}

/// Bytes that a step must read, activations and compressor rows apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All weights but those of routed experts, and of the embedding only the rows used.
    pub dense: u64,
    /// Weights of the routed experts that had rows.
    pub experts: u64,
    /// Window rows and compressed entries.
    pub entries: u64,
    /// Indexer keys.
    pub index_keys: u64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be loaded, or a step failed.
    #[error("cannot run the model")]
    Model(#[from] model::Error),
    /// A sequence was refused.
    #[error("cannot place the sequences")]
    Sequences(#[from] kv_cache::Error),
    /// There is a layer of which the rank has no expert.
    #[error("{num_ranks} ranks are too many for {num_experts} experts")]
    TooManyRanks {
        /// Ranks asked for.
        num_ranks: NonZeroUsize,
        /// Experts of a layer.
        num_experts: usize,
    },
}

/// Cache sizes of the cases that fit together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    num_blocks: usize,
    num_slots: usize,
}

/// Bytes of a block and of a slot over all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CellBytes {
    block: u64,
    slot: u64,
}

/// Runs all batches at all contexts; `observe` hears of each.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options, observe: &mut dyn FnMut(Event<'_>)) -> Result<Report, Error> {
    let (num_ranks, num_experts) = (options.num_ranks, options.config.n_routed_experts);
    if num_ranks.get() > num_experts {
        return Err(Error::TooManyRanks { num_ranks, num_experts });
    }
    // A device that is not there is told of before time is spent.
    let free = free_bytes(&options.device)?;
    let source = Synthetic::new(options.config.clone());
    let layers = options.config.num_hidden_layers;
    let placement = Placement::contiguous(layers, num_experts, num_ranks.get());
    let weight_bytes = source.num_bytes_for(EpRank(0), &placement);
    let room = Room::of(options, cache_bytes_max(options, free, weight_bytes));
    let load = LoadOptions {
        rank: EpRank(0),
        placement,
        numerics: options.numerics,
        limits: room.limits(options),
        num_threads: options.num_threads,
        exchange_deadline: EXCHANGE_DEADLINE,
    };
    let mut model = LoneModel::load(&options.device, &source, &load, &mut |progress| {
        observe(Event::Loading(progress));
    })?;
    let copy_bandwidth = model.copy_bandwidth(options.copy_bytes, options.num_threads);
    let mut report = Report { weight_bytes, copy_bandwidth, rows: Vec::new() };
    let mut steps = (1..).map(StepId);
    for (batch, context) in options.cases() {
        let outcome = if room.holds(options, batch, context) {
            let mut bench = Bench { options, source: &source, model: &mut model };
            Outcome::Measured(bench.measure(&mut steps, batch, context)?)
        } else {
            let needed = Room::default().with(options, batch, context);
            Outcome::NoRoom { cache_bytes: needed.num_bytes(CellBytes::of(options)) }
        };
        let row = Row { batch, context, outcome };
        observe(Event::Row(&report, &row));
        report.rows.push(row);
    }
    Ok(report)
}

fn cache_bytes_max(options: &Options, free: Option<u64>, weight_bytes: u64) -> u64 {
    options.cache_bytes_max.unwrap_or_else(|| match free {
        Some(free) => free.saturating_sub(weight_bytes + RESERVED_BYTES),
        None => CACHE_BYTES_DEFAULT,
    })
}

// === impl Options ===

impl Options {
    fn cases(&self) -> impl Iterator<Item = (usize, usize)> {
        let contexts = self.contexts.iter();
        contexts.flat_map(|&context| self.batches.iter().map(move |&batch| (batch, context)))
    }

    /// Tokens of a sequence at the end of its case.
    fn num_tokens(&self, context: usize) -> usize {
        context + NUM_WARM_UPS + self.num_steps.get() + NUM_PHASE_STEPS
    }
}

// === impl CellBytes ===

impl CellBytes {
    fn of(options: &Options) -> Self {
        let config = &options.config;
        let format = options.device.cache_format(options.numerics);
        let block = block_bytes(config, format) as u64;
        Self { block, slot: sequence_bytes(config, format) as u64 }
    }
}

// === impl Room ===

impl Room {
    /// Room for every case that `num_bytes_max` suffice for, smaller ones first.
    fn of(options: &Options, num_bytes_max: u64) -> Self {
        let cells = CellBytes::of(options);
        let bytes = |&(batch, context): &(usize, usize)| {
            Self::default().with(options, batch, context).num_bytes(cells)
        };
        let mut cases: Vec<_> = options.cases().collect();
        cases.sort_by_key(bytes);
        cases.iter().fold(Self::default(), |room, &(batch, context)| {
            let more = room.with(options, batch, context);
            if more.num_bytes(cells) <= num_bytes_max { more } else { room }
        })
    }

    /// As much, and at least what one case needs.
    fn with(self, options: &Options, batch: usize, context: usize) -> Self {
        Self {
            num_blocks: self.num_blocks.max(batch * num_blocks(options.num_tokens(context))),
            num_slots: self.num_slots.max(batch),
        }
    }

    fn holds(self, options: &Options, batch: usize, context: usize) -> bool {
        self.with(options, batch, context) == self
    }

    fn num_bytes(self, cells: CellBytes) -> u64 {
        self.num_blocks as u64 * cells.block + self.num_slots as u64 * cells.slot
    }

    fn limits(self, options: &Options) -> CacheLimits {
        let longest = options.contexts.iter().map(|&context| options.num_tokens(context)).max();
        CacheLimits {
            num_blocks: self.num_blocks.max(1),
            max_num_seqs: self.num_slots.max(1),
            max_num_batched_tokens: self.num_slots.max(1),
            max_model_len: longest.unwrap_or(1),
        }
    }
}

/// One case on its way.
struct Bench<'a> {
    options: &'a Options,
    source: &'a Synthetic,
    model: &'a mut LoneModel,
}

impl Bench<'_> {
    fn measure(
        &mut self,
        steps: &mut dyn Iterator<Item = StepId>,
        batch: usize,
        context: usize,
    ) -> Result<Measured, Error> {
        self.model.clear();
        let blocks = num_blocks(self.options.num_tokens(context));
        for sequence in 0..batch {
            let blocks = sequence * blocks..(sequence + 1) * blocks;
            let blocks = blocks.map(|block| BlockId(block as u32)).collect();
            self.model.pretend(SequenceId(sequence as u64), context, blocks)?;
        }
        let mut position = context;
        let mut next = || {
            let next = self.batch(batch, position);
            position += 1;
            next
        };
        let batches: Vec<_> = (context..self.options.num_tokens(context)).map(|_| next()).collect();
        let mut work = steps.zip(&batches);
        let mut census = Census::default();
        for (step, batch) in work.by_ref().take(NUM_WARM_UPS) {
            census = self.model.counted_step(step, batch)?.1;
        }
        let mut seconds = Vec::new();
        for (step, batch) in work.by_ref().take(self.options.num_steps.get()) {
            seconds.push(self.model.step(step, batch)?.timings.total);
        }
        seconds.sort_by(f64::total_cmp);
        self.model.time_phases(true);
        let mut phases = Vec::new();
        for (step, batch) in work.take(NUM_PHASE_STEPS) {
            phases.push(self.model.step(step, batch)?.timings);
        }
        self.model.time_phases(false);
        Ok(Measured {
            seconds: seconds[seconds.len() / 2],
            seconds_min: seconds[0],
            phases: mean_timings(&phases),
            traffic: traffic(self.options, self.source, (batch, context), &census),
            num_assignments: mean(&census.num_assignments),
            num_hit: mean(&census.num_hit),
        })
    }

    /// A token for each sequence. Tokens that a model without meaning samples would soon be all alike.
    fn batch(&self, batch: usize, position: usize) -> StepBatch {
        let vocab_size = self.options.config.vocab_size as u64;
        let chunk = |sequence: usize| {
            let mut state = ((sequence as u64) << 32) | position as u64;
            SequenceChunk {
                sequence: SequenceId(sequence as u64),
                first_position: position as u32,
                tokens: ChunkTokens::Ids(vec![(weights::random(&mut state) % vocab_size) as u32]),
                new_blocks: Vec::new(),
                start: None,
                samples: true,
            }
        };
        StepBatch { chunks: (0..batch).map(chunk).collect(), released: Vec::new() }
    }
}

/// What a step of `batch` sequences with `context` tokens each must read.
fn traffic(
    options: &Options,
    source: &Synthetic,
    (batch, context): (usize, usize),
    census: &Census,
) -> Traffic {
    let config = &options.config;
    let bytes = RowBytes::of(&options.device, options.numerics, config);
    let visible = |ratio: usize| (context + 1) / ratio;
    let chooses = |ratio: usize| visible(ratio) > config.index_topk;
    let window = config.sliding_window.min(context + 1);
    let (mut entries, mut keys, mut unread) = (0, 0, 0);
    for (layer, &kind) in config.layers.iter().enumerate() {
        entries += window;
        match kind {
            AttentionKind::SlidingWindow => {}
            AttentionKind::Hca { ratio } => entries += visible(ratio),
            AttentionKind::Csa { ratio } if chooses(ratio) => {
                entries += config.index_topk;
                keys += visible(ratio);
            }
            AttentionKind::Csa { ratio } => {
                entries += visible(ratio);
                let indexer = format!("layers.{layer}.attn.indexer.w");
                unread += source.num_bytes_where(|name| name.starts_with(&indexer));
            }
        }
    }
    let embed = source.num_bytes_of("embed.weight") as u64;
    let of_all = source.num_bytes_where(|name| {
        !weights::is_routed_expert(name) && name != "embed.weight" && !name.ends_with("tid2eid")
    });
    let rows = embed / config.vocab_size as u64 * batch as u64;
    let of_layer = |(layer, &num_hit): (usize, &usize)| num_hit as u64 * source.expert_bytes(layer);
    Traffic {
        dense: of_all - unread + rows,
        experts: census.num_hit.iter().enumerate().map(of_layer).sum(),
        entries: (batch * entries * bytes.entry) as u64,
        index_keys: (batch * keys * bytes.index_key) as u64,
    }
}

fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}

fn mean_timings(steps: &[StepTimings]) -> StepTimings {
    let mean =
        |of: fn(&StepTimings) -> f64| steps.iter().map(of).sum::<f64>() / steps.len().max(1) as f64;
    StepTimings {
        total: mean(|timings| timings.total),
        attention: mean(|timings| timings.attention),
        dispatch: mean(|timings| timings.dispatch),
        experts: mean(|timings| timings.experts),
        combine: mean(|timings| timings.combine),
        head: mean(|timings| timings.head),
        num_tokens: steps.first().map_or(0, |timings| timings.num_tokens),
    }
}

// === impl Traffic ===

impl Traffic {
    /// All bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.dense + self.experts + self.entries + self.index_keys
    }
}

// === impl Row ===

impl Row {
    /// Tokens per second of this rank, if it ran.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(self.batch as f64 / measured.seconds),
            Outcome::NoRoom { .. } => None,
        }
    }
}

// === impl Measured ===

impl Measured {
    /// Seconds that reading takes at `bandwidth` bytes per second.
    #[must_use]
    pub fn roofline_seconds(&self, bandwidth: f64) -> f64 {
        self.traffic.total() as f64 / bandwidth
    }
}
