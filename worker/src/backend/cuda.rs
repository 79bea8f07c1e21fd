//! An NVIDIA GPU. Every op is a kernel, or a few, queued on one stream; no op waits for the device but those that bring
//! numbers back: samples, and the sizes of frames. (Collectives wait for what they exchange.)

use std::sync::Arc;

use switchyard_kernels::cuda::attention::{AttendInput as Attend, attend};
use switchyard_kernels::cuda::compressor::{self, CompressInput as Compress, compress};
use switchyard_kernels::cuda::embed::{embed, take_rows};
use switchyard_kernels::cuda::hyper::{
    HyperMix, HyperWeights as Hyper, hyper_head, hyper_post, hyper_pre,
};
use switchyard_kernels::cuda::indexer::{SelectInput as Select, Selection, select};
use switchyard_kernels::cuda::kv_cache::{Cache, CacheShape, LayerKind};
use switchyard_kernels::cuda::matmul::{matmul, matmul_block_diagonal};
use switchyard_kernels::cuda::norm::{rms_norm, rms_norm_unweighted};
use switchyard_kernels::cuda::quant::{fp8_round_trip, fp8_round_trip_head, quantize_index};
use switchyard_kernels::cuda::rope::{rope, rope_angles};
use switchyard_kernels::cuda::sampling::{SampleParams, sample};
use switchyard_kernels::cuda::swiglu::swiglu;
use switchyard_kernels::cuda::{Elem, Error, Gpu, Memory, Row, Step, Tensor, Variant};
use switchyard_kernels::hyper::HyperParams;
use switchyard_kernels::quant::{ACTIVATION_BLOCK, KV_BLOCK};
use switchyard_moe::capacity::entries_per_block;
use switchyard_moe::config::{AttentionKind, ModelConfig};

use super::{
    AttendInput, Backend, CompressInput, DeviceError, Entries, GateWeights, HyperWeights,
    MlpWeights, Numerics, RopeTable, Rotation, Sample, SampleRequest, SelectInput, frequencies,
};
use crate::experts::{FrameError, Routes};
use crate::kv_cache::{LayerLayout, Span};
use crate::weights;

mod matrix;
pub(crate) mod measure;
mod moe;
#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

pub use matrix::CudaMatrix;
pub use moe::{CudaBuffer, CudaExperts, CudaReceived, CudaRouting};

/// A GPU that computes one model in one numerics.
#[derive(Debug)]
pub struct CudaBackend {
    gpu: Gpu,
    config: ModelConfig,
    numerics: Numerics,
    /// Radians per position of each pair, of layers with nothing but a window.
    main_frequencies: Memory<f32>,
    /// The same of layers that compress.
    compress_frequencies: Memory<f32>,
    /// The rotations of the step's rows.
    main_angles: Tensor,
    /// The same for layers that compress.
    compress_angles: Tensor,
    step: Step,
    /// Ids of the step's tokens, or numbers of rows.
    ids: Memory<u32>,
    /// A quantised copy of a product's input.
    quantized: Tensor,
    experts: moe::Scratch,
    /// Whether rows travel to their experts as e4m3.
    sends_fp8: bool,
}

// === impl CudaBackend ===

impl CudaBackend {
    /// Prepares `gpu` for a model. Rows may travel as e4m3 if the inputs of all experts are quantised anyway.
    #[must_use]
    pub fn new(gpu: &Gpu, config: &ModelConfig, has_quantized_experts: bool) -> Self {
        let numerics = match gpu.variant() {
            Variant::Exact => Numerics::Exact,
            Variant::Official => Numerics::Official,
        };
        let (main, compress) = frequencies(config);
        let angles = || Tensor::new(gpu, Elem::F32, config.qk_rope_head_dim);
        Self {
            gpu: gpu.clone(),
            config: config.clone(),
            numerics,
            main_frequencies: gpu.upload(main.inv_freq()),
            compress_frequencies: gpu.upload(compress.inv_freq()),
            main_angles: angles(),
            compress_angles: angles(),
            step: Step::new(gpu),
            ids: gpu.zeros(0),
            quantized: Tensor::new(gpu, gpu.act(), config.hidden_size),
            experts: moe::Scratch::new(gpu),
            sends_fp8: numerics == Numerics::Official && has_quantized_experts,
        }
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn hyper_params(&self) -> HyperParams {
        HyperParams {
            num_streams: self.config.hc_mult,
            sinkhorn_iters: self.config.hc_sinkhorn_iters,
            hc_eps: self.config.hc_eps,
            norm_eps: self.config.rms_norm_eps,
        }
    }

    /// `x W^T` in `elem`, of an input that is quantised first if the matrix asks for it.
    fn product(&mut self, weight: &CudaMatrix, x: &Tensor, elem: Elem, out: &mut Tensor) {
        if weight.quantizes_input() {
            fp8_round_trip(&self.gpu, x, ACTIVATION_BLOCK, &mut self.quantized);
            matmul(&self.gpu, &self.quantized, weight.weights(), elem, out);
        } else {
            matmul(&self.gpu, x, weight.weights(), elem, out);
        }
    }

    fn upload_ids(&mut self, ids: impl ExactSizeIterator<Item = u32>) {
        if ids.len() > self.ids.len() {
            self.ids = self.gpu.zeros(ids.len().next_power_of_two());
        }
        self.ids.write(0, &ids.collect::<Vec<_>>());
    }

    /// Whether all has gone well since the device was opened.
    fn check(&self) -> Result<(), DeviceError> {
        self.gpu.fault().map_or(Ok(()), |fault: Error| Err(DeviceError(Arc::new(fault))))
    }

    /// Most entries that a row of `spans` sees on a layer.
    fn max_visible(spans: &[Span<'_>], ratio: Option<usize>) -> usize {
        let visible = |span: &Span<'_>| ratio.map_or(0, |ratio| span.end_position() / ratio);
        spans.iter().map(visible).max().unwrap_or(0)
    }
}

fn hyper<'a>(weights: &'a HyperWeights<CudaBackend>) -> Hyper<'a> {
    Hyper { function: weights.function.weights(), base: &weights.base, scale: &weights.scale }
}

/// A layer's cache with the entries per token that its kind has.
#[derive(Debug)]
pub struct CudaCache {
    cache: Cache,
    ratio: Option<usize>,
}

/// Codes and scales of cache rows, of which each is a small number in every format.
fn cache_noise() -> [Vec<u8>; 2] {
    // Odd multiples of a power of two, so that rows differ.
    let len = (1 << 22) + 64;
    let mut state = 1;
    let mut noise = |shape: fn(u8) -> u8| {
        let words = std::iter::repeat_with(|| weights::random(&mut state).to_le_bytes());
        words.flatten().map(shape).take(len).collect()
    };
    [noise(|code| code & 0xbf), noise(|code| 119 + code % 3)]
}

impl Backend for CudaBackend {
    type Tensor = Tensor;
    type Vector = Memory<f32>;
    type Matrix = CudaMatrix;
    type IdTable = Memory<u32>;
    type Routes = moe::CudaRoutes;
    type Experts = CudaExperts;
    type Cache = CudaCache;
    type Mix = HyperMix;
    type Routing = CudaRouting;
    type Selection = Selection;
    type Received = CudaReceived;
    type Buffer = CudaBuffer;

    fn tensor(&self, cols: usize) -> Tensor {
        Tensor::new(&self.gpu, self.gpu.act(), cols)
    }

    fn upload(&self, data: Vec<f32>, cols: usize) -> Tensor {
        Tensor::upload(&self.gpu, self.gpu.act(), &data, cols)
    }

    fn download(&self, tensor: &Tensor) -> Vec<f32> {
        tensor.download()
    }

    fn vector(&self, data: Vec<f32>) -> Memory<f32> {
        self.gpu.upload(&data)
    }

    fn matrix(&self, source: weights::Matrix<'_>) -> CudaMatrix {
        CudaMatrix::new(&self.gpu, source, self.numerics)
    }

    fn grouped_matrix(&self, source: weights::Matrix<'_>, groups: usize) -> CudaMatrix {
        CudaMatrix::grouped(&self.gpu, source, groups)
    }

    fn id_table(&self, data: Vec<u32>) -> Memory<u32> {
        self.gpu.upload(&data)
    }

    fn routes(&self, routes: Routes) -> moe::CudaRoutes {
        moe::CudaRoutes::new(&self.gpu, &routes)
    }

    fn experts(&self, slots: Vec<Option<MlpWeights<CudaMatrix>>>) -> CudaExperts {
        CudaExperts::new(&self.gpu, slots)
    }

    fn cache(&self, layout: &LayerLayout) -> CudaCache {
        let kind = match layout.kind {
            AttentionKind::SlidingWindow => LayerKind::SlidingWindow,
            AttentionKind::Csa { ratio } => LayerKind::Csa { ratio },
            AttentionKind::Hca { ratio } => LayerKind::Hca { ratio },
        };
        let shape = CacheShape {
            kind,
            head_dim: layout.head_dim,
            rotary_dim: self.config.qk_rope_head_dim,
            index_head_dim: layout.index_head_dim,
            sliding_window: layout.sliding_window,
            window_rows: layout.window_rows,
            tail_rows: layout.tail_rows,
            num_blocks: layout.num_blocks,
            entries_per_block: layout.kind.ratio().map_or(0, entries_per_block),
            num_slots: layout.num_slots,
        };
        CudaCache { cache: Cache::new(&self.gpu, &shape), ratio: layout.kind.ratio() }
    }

    fn fill_with_noise(&self, cache: &mut CudaCache) {
        let [codes, scales] = cache_noise().map(|noise| self.gpu.upload(&noise));
        cache.cache.fill(&codes, &scales);
    }

    fn mix(&self) -> HyperMix {
        HyperMix::new(&self.gpu)
    }

    fn routing(&self) -> CudaRouting {
        CudaRouting::new(&self.gpu)
    }

    fn selection(&self) -> Selection {
        Selection::new(&self.gpu)
    }

    fn received(&self) -> CudaReceived {
        CudaReceived::new(&self.gpu)
    }

    fn buffer(&self) -> CudaBuffer {
        CudaBuffer::new(&self.gpu)
    }

    fn finish_load(&self) -> Result<(), DeviceError> {
        self.gpu.synchronize();
        self.check()
    }

    fn begin_step(&mut self, spans: &[Span<'_>]) {
        let (mut rows, mut blocks) = (Vec::new(), Vec::new());
        for span in spans {
            let row = |position: usize| Row {
                position: position as u32,
                slot: span.slot as u32,
                first_row: span.first_row as u32,
                first_position: span.first_position as u32,
                table: blocks.len() as u32,
            };
            rows.extend((span.first_position..span.end_position()).map(row));
            blocks.extend(span.blocks.iter().map(|block| block.0));
        }
        self.step.set(&self.gpu, &rows, &blocks);
        rope_angles(&self.gpu, &self.step, &self.main_frequencies, &mut self.main_angles);
        rope_angles(&self.gpu, &self.step, &self.compress_frequencies, &mut self.compress_angles);
    }

    fn wait(&mut self) {
        self.gpu.synchronize();
    }

    fn end_step(&mut self) -> Result<(), DeviceError> {
        self.check()
    }

    fn embed(&mut self, table: &CudaMatrix, ids: &[u32], streams: &mut Tensor) {
        self.upload_ids(ids.iter().copied());
        let shape = (ids.len(), self.config.hc_mult);
        embed(&self.gpu, table.weights(), &self.ids, shape, streams);
    }

    fn hyper_pre(
        &mut self,
        weights: &HyperWeights<Self>,
        streams: &Tensor,
        mix: &mut HyperMix,
        x: &mut Tensor,
    ) {
        hyper_pre(&self.gpu, &hyper(weights), &self.hyper_params(), (streams, mix, x));
    }

    fn hyper_post(&mut self, y: &Tensor, mix: &HyperMix, streams: &mut Tensor) {
        hyper_post(&self.gpu, y, mix, streams);
    }

    fn hyper_head(&mut self, weights: &HyperWeights<Self>, streams: &Tensor, x: &mut Tensor) {
        hyper_head(&self.gpu, &hyper(weights), &self.hyper_params(), streams, x);
    }

    fn norm(&mut self, weight: &Memory<f32>, x: &mut Tensor) {
        rms_norm(&self.gpu, x, weight, self.config.rms_norm_eps);
    }

    fn norm_heads(&mut self, x: &mut Tensor) {
        rms_norm_unweighted(&self.gpu, x, self.config.head_dim, self.config.rms_norm_eps);
    }

    fn linear(&mut self, weight: &CudaMatrix, x: &Tensor, out: &mut Tensor) {
        self.product(weight, x, self.gpu.act(), out);
    }

    fn linear_f32(&mut self, weight: &CudaMatrix, x: &Tensor, out: &mut Tensor) {
        matmul(&self.gpu, x, weight.weights(), Elem::F32, out);
    }

    fn grouped_linear(&mut self, weight: &CudaMatrix, x: &Tensor, out: &mut Tensor) {
        matmul_block_diagonal(&self.gpu, x, weight.weights(), weight.groups(), out);
    }

    fn rope(&mut self, table: RopeTable, rotation: Rotation, head_dim: usize, x: &mut Tensor) {
        let angles = match table {
            RopeTable::Main => &self.main_angles,
            RopeTable::Compress => &self.compress_angles,
        };
        rope(&self.gpu, x, head_dim, angles, rotation == Rotation::Inverse);
    }

    fn quantize_kv(&mut self, kv: &mut Tensor) {
        match self.numerics {
            Numerics::Exact => {}
            Numerics::Official => {
                let rotated = self.config.qk_rope_head_dim;
                let stored = kv.cols() - rotated;
                fp8_round_trip_head(&self.gpu, kv, stored, KV_BLOCK);
            }
        }
    }

    fn quantize_index(&mut self, q: &mut Tensor) {
        match self.numerics {
            Numerics::Exact => {}
            Numerics::Official => quantize_index(&self.gpu, q, self.config.index_head_dim),
        }
    }

    fn compress(
        &mut self,
        input: &CompressInput<'_, Self>,
        _spans: &[Span<'_>],
        cache: &mut CudaCache,
    ) {
        let input = Compress {
            entries: match input.entries {
                Entries::Main => compressor::Entries::Main,
                Entries::IndexKeys => compressor::Entries::IndexKeys,
            },
            kv: input.kv,
            score: input.score,
            ape: &input.weights.ape,
            norm: &input.weights.norm,
            norm_eps: self.config.rms_norm_eps,
            inv_freq: &self.compress_frequencies,
        };
        compress(&self.gpu, &self.step, &input, &mut cache.cache);
    }

    fn select(
        &mut self,
        input: &SelectInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &CudaCache,
        selection: &mut Selection,
    ) {
        let input = Select {
            q: input.q,
            weights: input.weights,
            num_heads: self.config.index_n_heads,
            topk: self.config.index_topk,
            max_visible: Self::max_visible(spans, cache.ratio),
        };
        select(&self.gpu, &self.step, &input, &cache.cache, selection);
    }

    fn attend(
        &mut self,
        input: &AttendInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut CudaCache,
        out: &mut Tensor,
    ) {
        let input = Attend {
            q: input.q,
            kv: input.kv,
            sinks: input.sinks,
            selection: input.selection,
            max_visible: Self::max_visible(spans, cache.ratio),
        };
        attend(&self.gpu, &self.step, &input, &mut cache.cache, out);
    }

    fn gate(
        &mut self,
        weights: &GateWeights<Self>,
        x: &Tensor,
        ids: &[u32],
        routing: &mut CudaRouting,
    ) {
        self.route_rows(weights, x, ids, routing);
    }

    fn pack_dispatch(
        &mut self,
        routes: &moe::CudaRoutes,
        x: &Tensor,
        routing: &mut CudaRouting,
        outbound: &mut [CudaBuffer],
    ) {
        self.send_rows(routes, x, routing, outbound);
    }

    fn unpack_dispatch(
        &mut self,
        inbound: &[CudaBuffer],
        num_slots: usize,
        received: &mut CudaReceived,
    ) -> Result<(), FrameError> {
        self.receive_rows(inbound, num_slots, received)
    }

    fn run_experts(&mut self, experts: &CudaExperts, received: &mut CudaReceived) {
        self.run_received(experts, received);
    }

    fn pack_combine(&mut self, received: &CudaReceived, outbound: &mut [CudaBuffer]) {
        self.answer_rows(received, outbound);
    }

    fn unpack_combine(
        &mut self,
        inbound: &[CudaBuffer],
        routing: &CudaRouting,
        y: &mut Tensor,
    ) -> Result<(), FrameError> {
        self.combine_rows(inbound, routing, y)
    }

    fn swiglu(&mut self, gate: &mut Tensor, up: &Tensor) {
        swiglu(&self.gpu, gate, up, self.config.swiglu_limit, None);
    }

    fn take_rows(&mut self, x: &Tensor, rows: &[usize], out: &mut Tensor) {
        self.upload_ids(rows.iter().map(|&row| row as u32));
        take_rows(&self.gpu, x, &self.ids, rows.len(), out);
    }

    fn sample(&mut self, logits: &Tensor, requests: &[SampleRequest<'_>]) -> Vec<Sample> {
        let params: Vec<_> = requests.iter().map(sample_params).collect();
        let adjustments: Vec<_> = requests.iter().map(|request| request.adjustment).collect();
        let samples = sample(&self.gpu, logits, &params, &adjustments);
        let sample = |sampled: switchyard_kernels::cuda::sampling::Sampled| Sample {
            token_id: sampled.token,
            logprob: sampled.logprob,
            top_logprobs: sampled.top,
        };
        samples.into_iter().map(sample).collect()
    }
}

fn sample_params(request: &SampleRequest<'_>) -> SampleParams {
    let SampleRequest { params, position, .. } = *request;
    SampleParams {
        seed_lo: params.seed as u32,
        seed_hi: (params.seed >> 32) as u32,
        choice: params.choice,
        position,
        temperature: params.temperature,
        min_p: params.min_p,
        top_k: params.top_k,
        top_p: params.top_p,
        num_top_logprobs: params.num_top_logprobs,
        wants_logprob: u32::from(params.logprobs),
    }
}
