//! What a device must be able to do. [`crate::model`] is written once over this trait.
//!
//! Tensors are matrices `[rows, cols]`, one row per token of the step, that stay on the device. An op that writes a
//! tensor gives it the right number of rows, so the model allocates each tensor once. No op's result for a row may
//! depend on the other rows of the call, on the number of threads, or on how a sequence is cut into spans.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use switchyard_kernels::rope as rope_kernel;
use switchyard_kernels::rope::{RopeParams, RopeTable as Frequencies};
use switchyard_kernels::sampling::Adjustment;
use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::EpRank;

use crate::experts::{FrameError, Routes};
use crate::kv_cache::{LayerLayout, Span};
use crate::step::SamplingParams;
use crate::weights;

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;

/// What is computed, by name: nothing about numbers is implied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// `f32` activations, nothing rounded or quantised that the checkpoint has not: the yardstick.
    Exact,
    /// DeepSeek's own: bf16 activations, e4m3 inputs (per 128 channels) of FP8 and FP4 weights, e4m3 KV entries,
    /// Hadamard and fp4 in the indexer. Query norm and index scores are `f32`.
    Official,
}

/// Which of the model's two frequency tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeTable {
    /// Layers with nothing but a window.
    Main,
    /// Layers that compress, with YaRN.
    Compress,
}

/// Rotates forth or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By the position's angle.
    Forward,
    /// By its negative.
    Inverse,
}

/// Parameters of the mixing around one sublayer, or of the final collapse.
#[derive(Debug)]
pub struct HyperWeights<B: Backend> {
    /// `[mixes, streams * hidden]`
    pub function: B::Matrix,
    /// `[mixes]`
    pub base: B::Vector,
    /// `[3]`, for the final collapse `[1]`
    pub scale: B::Vector,
}

/// Parameters of a compressor.
#[derive(Debug)]
pub struct CompressorWeights<B: Backend> {
    /// `[width, hidden]`; the width is that of an entry, on CSA layers twice that.
    pub wkv: B::Matrix,
    /// `[width, hidden]`
    pub wgate: B::Matrix,
    /// `[ratio, width]`
    pub ape: B::Vector,
    /// `[entry]`
    pub norm: B::Vector,
}

/// Which of a CSA layer's two compressors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Entries that are attended.
    Main,
    /// The indexer's keys.
    IndexKeys,
}

/// Rows that finish entries: inputs of [`Backend::compress`].
#[derive(Debug)]
pub struct CompressInput<'a, B: Backend> {
    /// Which compressor.
    pub entries: Entries,
    /// Its parameters.
    pub weights: &'a CompressorWeights<B>,
    /// `wkv x`, `[rows, width]` in `f32`.
    pub kv: &'a B::Tensor,
    /// `wgate x`, `[rows, width]` in `f32`, without `ape`.
    pub score: &'a B::Tensor,
}

/// Inputs of [`Backend::select`].
#[derive(Debug)]
pub struct SelectInput<'a, B: Backend> {
    /// Indexer queries, rotated and quantised, `[rows, index_n_heads * index_head_dim]`.
    pub q: &'a B::Tensor,
    /// `weights_proj x`, `[rows, index_n_heads]`.
    pub weights: &'a B::Tensor,
}

/// Inputs of [`Backend::attend`].
#[derive(Debug)]
pub struct AttendInput<'a, B: Backend> {
    /// Queries, normed and rotated, `[rows, heads * head_dim]`.
    pub q: &'a B::Tensor,
    /// Window rows of the step's own tokens, `[rows, head_dim]`.
    pub kv: &'a B::Tensor,
    /// `[heads]`
    pub sinks: &'a B::Vector,
    /// The entries that the indexer chose; `None` attends every visible one.
    pub selection: Option<&'a B::Selection>,
}

/// How a layer's gate chooses experts.
#[derive(Debug)]
pub struct GateWeights<B: Backend> {
    /// `[experts, hidden]`
    pub weight: B::Matrix,
    /// By score or by token id.
    pub choice: GateChoice<B>,
}

/// See [`GateWeights::choice`].
#[derive(Debug)]
pub enum GateChoice<B: Backend> {
    /// The highest scores after adding this bias, `[experts]`.
    Score(B::Vector),
    /// The ids in this table, `[vocab, num_experts_per_tok]`.
    Hash(B::IdTable),
}

/// The three matrices of an expert.
#[derive(Debug)]
pub struct MlpWeights<M> {
    /// Gate, `[inner, hidden]`.
    pub w1: M,
    /// Down, `[hidden, inner]`.
    pub w2: M,
    /// Up, `[inner, hidden]`.
    pub w3: M,
}

/// A row of logits that is to be sampled from.
#[derive(Clone, Copy, Debug)]
pub struct SampleRequest<'a> {
    /// How.
    pub params: &'a SamplingParams,
    /// Absolute position of the token to be sampled.
    pub position: u32,
    /// What is done to the logits before.
    pub adjustment: Adjustment<'a>,
}

/// What was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The token.
    pub token_id: u32,
    /// Its log probability, 0 unless asked for.
    pub logprob: f32,
    /// The most likely tokens, as many as were asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// A device that failed, and goes on failing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the device failed")]
pub struct DeviceError(#[source] pub Arc<dyn std::error::Error + Send + Sync>);

/// A device that computes one model in one numerics.
pub trait Backend: fmt::Debug + Send + Sized {
    /// Activations `[rows, cols]`.
    type Tensor: fmt::Debug + Send;
    /// Small parameters, in `f32`.
    type Vector: fmt::Debug + Send;
    /// A weight matrix, in the checkpoint's format.
    type Matrix: fmt::Debug + Send;
    /// Expert ids by token id.
    type IdTable: fmt::Debug + Send;
    /// Where every expert of a layer computes.
    type Routes: fmt::Debug + Send;
    /// One layer's share of experts, one per slot of this rank.
    type Experts: fmt::Debug + Send;
    /// One layer's cache.
    type Cache: fmt::Debug + Send;
    /// Mixing coefficients of every row, from [`hyper_pre`](Self::hyper_pre) to [`hyper_post`](Self::hyper_post).
    type Mix: fmt::Debug + Send;
    /// Each row's experts and weights, and after `dispatch` where its rows went.
    type Routing: fmt::Debug + Send;
    /// Each row's chosen entries.
    type Selection: fmt::Debug + Send;
    /// Rows of all ranks that this rank's experts compute.
    type Received: fmt::Debug + Send;
    /// What the collective carries.
    type Buffer: fmt::Debug + Send;

    /// Makes an empty tensor with `cols` columns.
    fn tensor(&self, cols: usize) -> Self::Tensor;
    /// Copies numbers to the device, `[data.len() / cols, cols]`.
    fn upload(&self, data: Vec<f32>, cols: usize) -> Self::Tensor;
    /// Copies a tensor to the host, row-major.
    fn download(&self, tensor: &Self::Tensor) -> Vec<f32>;
    /// Loads parameters.
    fn vector(&self, data: Vec<f32>) -> Self::Vector;
    /// Loads a weight matrix.
    fn matrix(&self, source: weights::Matrix<'_>) -> Self::Matrix;
    /// Loads a matrix of which `groups` bands of rows each multiply their own band of the input, and whose input is
    /// never quantised.
    fn grouped_matrix(&self, source: weights::Matrix<'_>, groups: usize) -> Self::Matrix;
    /// Loads a table of expert ids, `[vocab, num_experts_per_tok]`.
    fn id_table(&self, data: Vec<u32>) -> Self::IdTable;
    /// Takes the places of one layer's experts.
    fn routes(&self, routes: Routes) -> Self::Routes;
    /// Takes the experts of one layer, `None` for an empty slot.
    fn experts(&self, slots: Vec<Option<MlpWeights<Self::Matrix>>>) -> Self::Experts;
    /// Reserves one layer's cache.
    fn cache(&self, layout: &LayerLayout) -> Self::Cache;
    /// Fills a cache with numbers that mean nothing, for measurements. Where all numbers cost the same it need not.
    fn fill_with_noise(&self, _cache: &mut Self::Cache) {}
    /// Makes room for mixing coefficients.
    fn mix(&self) -> Self::Mix;
    /// Makes room for the choice of experts.
    fn routing(&self) -> Self::Routing;
    /// Makes room for the choice of entries.
    fn selection(&self) -> Self::Selection;
    /// Makes room for other ranks' rows.
    fn received(&self) -> Self::Received;
    /// Rows that the experts here compute, a row once for each of its experts; `None` where only the device knows.
    fn num_received(&self, _received: &Self::Received) -> Option<usize> {
        None
    }
    /// Makes an empty buffer.
    fn buffer(&self) -> Self::Buffer;

    /// Waits until everything loaded so far is in its place.
    ///
    /// # Errors
    /// When the device failed, for want of memory say.
    fn finish_load(&self) -> Result<(), DeviceError>;
    /// Prepares for a step over `spans`, whose rows are in order and without gaps.
    fn begin_step(&mut self, spans: &[Span<'_>]);
    /// Waits until the device has done what was asked of it. Ops do not need it; clocks do.
    fn wait(&mut self) {}
    /// Tells whether the device did all that was asked of it since it was opened.
    ///
    /// # Errors
    /// When it failed; what was computed since is worthless.
    fn end_step(&mut self) -> Result<(), DeviceError>;
    /// `streams[row] =` the embedding of `ids[row]`, once per stream.
    fn embed(&mut self, table: &Self::Matrix, ids: &[u32], streams: &mut Self::Tensor);
    /// Collapses the streams into a sublayer's input `x`; `mix` keeps what [`hyper_post`](Self::hyper_post) needs.
    fn hyper_pre(
        &mut self,
        weights: &HyperWeights<Self>,
        streams: &Self::Tensor,
        mix: &mut Self::Mix,
        x: &mut Self::Tensor,
    );
    /// Spreads a sublayer's output over the streams.
    fn hyper_post(&mut self, y: &Self::Tensor, mix: &Self::Mix, streams: &mut Self::Tensor);
    /// Collapses the streams for the head.
    fn hyper_head(
        &mut self,
        weights: &HyperWeights<Self>,
        streams: &Self::Tensor,
        x: &mut Self::Tensor,
    );
    /// RMS norm of every row, in place, times `weight`.
    fn norm(&mut self, weight: &Self::Vector, x: &mut Self::Tensor);
    /// RMS norm of every attention head of every row, in place.
    fn norm_heads(&mut self, x: &mut Self::Tensor);
    /// `x W^T` in the activation type. The input of a quantised matrix is quantised first where the numerics say so.
    fn linear(&mut self, weight: &Self::Matrix, x: &Self::Tensor, out: &mut Self::Tensor);
    /// `x W^T` in `f32`, from an input as it is.
    fn linear_f32(&mut self, weight: &Self::Matrix, x: &Self::Tensor, out: &mut Self::Tensor);
    /// Each group of columns of `x` times its own rows of a [`grouped_matrix`](Self::grouped_matrix).
    fn grouped_linear(&mut self, weight: &Self::Matrix, x: &Self::Tensor, out: &mut Self::Tensor);
    /// Rotates the last `qk_rope_head_dim` channels of each head of width `head_dim`, by the rows' positions.
    fn rope(&mut self, table: RopeTable, rotation: Rotation, head_dim: usize, x: &mut Self::Tensor);
    /// Rounds window rows as the numerics store them.
    fn quantize_kv(&mut self, kv: &mut Self::Tensor);
    /// Rounds indexer queries as the numerics compare them.
    fn quantize_index(&mut self, q: &mut Self::Tensor);
    /// Pools the entries that the spans finish, and stores them with the rows that later entries need.
    fn compress(
        &mut self,
        input: &CompressInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut Self::Cache,
    );
    /// Chooses up to `index_topk` visible entries for every row, higher scores first, ties to the lower entry.
    fn select(
        &mut self,
        input: &SelectInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &Self::Cache,
        selection: &mut Self::Selection,
    );
    /// Attends the window and entries, then stores the window rows.
    fn attend(
        &mut self,
        input: &AttendInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut Self::Cache,
        out: &mut Self::Tensor,
    );
    /// Chooses and weighs every row's experts.
    fn gate(
        &mut self,
        weights: &GateWeights<Self>,
        x: &Self::Tensor,
        ids: &[u32],
        routing: &mut Self::Routing,
    );
    /// Writes to `outbound[r]` the rows that rank `r` has experts for, and remembers in `routing` what went where.
    fn pack_dispatch(
        &mut self,
        routes: &Self::Routes,
        x: &Self::Tensor,
        routing: &mut Self::Routing,
        outbound: &mut [Self::Buffer],
    );
    /// Takes the rows that `inbound[r]` brings from rank `r` for the `num_slots` slots here.
    ///
    /// # Errors
    /// When a frame is not what a rank of this group can have sent.
    fn unpack_dispatch(
        &mut self,
        inbound: &[Self::Buffer],
        num_slots: usize,
        received: &mut Self::Received,
    ) -> Result<(), FrameError>;
    /// Computes the received rows, grouped by expert, each times its routing weight.
    fn run_experts(&mut self, experts: &Self::Experts, received: &mut Self::Received);
    /// Writes to `outbound[r]` the expert rows that belong to rank `r`, one by one.
    fn pack_combine(&mut self, received: &Self::Received, outbound: &mut [Self::Buffer]);
    /// `y =` every row's expert rows in top-k order, plus the shared expert's, which `y` holds.
    ///
    /// # Errors
    /// When a frame does not answer what was dispatched.
    fn unpack_combine(
        &mut self,
        inbound: &[Self::Buffer],
        routing: &Self::Routing,
        y: &mut Self::Tensor,
    ) -> Result<(), FrameError>;
    /// `gate = clamped silu(gate) * clamped up`.
    fn swiglu(&mut self, gate: &mut Self::Tensor, up: &Self::Tensor);
    /// Copies some rows.
    fn take_rows(&mut self, x: &Self::Tensor, rows: &[usize], out: &mut Self::Tensor);
    /// Samples from rows of logits, one request per row.
    fn sample(&mut self, logits: &Self::Tensor, requests: &[SampleRequest<'_>]) -> Vec<Sample>;
}

/// The frequencies of a model's two kinds of layers: those with nothing but a window, and those that compress.
fn frequencies(config: &ModelConfig) -> (Frequencies, Frequencies) {
    let table = |theta, yarn| {
        Frequencies::new(&RopeParams { theta, rotary_dim: config.qk_rope_head_dim, yarn })
    };
    let yarn = config.yarn.map(|yarn| rope_kernel::Yarn {
        factor: yarn.factor,
        beta_fast: yarn.beta_fast,
        beta_slow: yarn.beta_slow,
        original_max_positions: yarn.original_max_position_embeddings as u32,
    });
    (table(config.rope_theta, None), table(config.compress_rope_theta, yarn))
}

/// The rank of index `rank` among an exchange's buffers.
pub(crate) fn peer(rank: usize) -> EpRank {
    EpRank(u32::try_from(rank).unwrap_or(u32::MAX))
}

// === impl Numerics ===

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Official => "official",
        })
    }
}

/// A name that is not that of a numerics.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a numerics; use \"exact\" or \"official\"")]
pub struct UnknownNumerics(String);

impl FromStr for Numerics {
    type Err = UnknownNumerics;

    fn from_str(name: &str) -> Result<Self, UnknownNumerics> {
        match name {
            "exact" => Ok(Self::Exact),
            "official" => Ok(Self::Official),
            _ => Err(UnknownNumerics(name.to_owned())),
        }
    }
}
