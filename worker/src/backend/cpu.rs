//! The processor. Activations are `f32` numbers in memory; official numerics rounds them to bf16 after each op.

use std::num::NonZeroUsize;

use switchyard_kernels::hadamard::hadamard;
use switchyard_kernels::hyper::{
    HyperCoefficients, HyperExpand, HyperParams, hc_coefficients, hc_collapse, hc_expand, hc_head,
};
use switchyard_kernels::matmul::{matmul, matmul_block_diagonal};
use switchyard_kernels::norm::{rms_norm, rms_norm_unweighted};
use switchyard_kernels::quant::{
    ACTIVATION_BLOCK, KV_BLOCK, fp4_round_trip, fp8_round_trip, round_bf16,
};
use switchyard_kernels::rope::{RopeAngles, RopeTable as Frequencies, rope, rope_inverse};
use switchyard_kernels::sampling::{self, DrawKey, LogProbs, Sampling};
use switchyard_kernels::swiglu::{Swiglu, swiglu};
use switchyard_kernels::{Cpu, hyper};
use switchyard_moe::config::ModelConfig;

use super::{
    AttendInput, Backend, CompressInput, DeviceError, GateWeights, HyperWeights, MlpWeights,
    Numerics, RopeTable, Rotation, Sample, SampleRequest, SelectInput, frequencies,
};
use crate::experts::frame::RowFormat;
use crate::experts::{FrameError, Routes};
use crate::kv_cache::{LayerLayout, Span};
use crate::weights;

mod attention;
mod cache;
mod compressor;
mod matrix;
mod moe;
mod tensor;

pub use cache::CpuCache;
pub use matrix::CpuMatrix;
pub use moe::{CpuExperts, CpuReceived, CpuRouting};
pub use switchyard_kernels::cpu::Error;
pub use tensor::CpuTensor;

/// Each row's chosen entries, rising.
pub type CpuSelection = Vec<Vec<u32>>;

/// A processor that computes one model in one numerics.
#[derive(Debug)]
pub struct CpuBackend {
    cpu: Cpu,
    config: ModelConfig,
    numerics: Numerics,
    main_rope: Frequencies,
    compress_rope: Frequencies,
    /// The rotations of the step's rows.
    main_angles: Vec<RopeAngles>,
    /// The same for layers that compress.
    compress_angles: Vec<RopeAngles>,
    /// A quantised copy of a product's input, or new streams.
    scratch: Vec<f32>,
    experts: moe::Scratch,
}

// === impl CpuBackend ===

impl CpuBackend {
    /// Prepares `num_threads` threads.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn new(
        config: &ModelConfig,
        numerics: Numerics,
        num_threads: NonZeroUsize,
    ) -> Result<Self, Error> {
        let (main_rope, compress_rope) = frequencies(config);
        Ok(Self {
            cpu: Cpu::detect(num_threads)?,
            config: config.clone(),
            numerics,
            main_rope,
            compress_rope,
            main_angles: Vec::new(),
            compress_angles: Vec::new(),
            scratch: Vec::new(),
            experts: moe::Scratch::default(),
        })
    }

    /// Rows on their way to other ranks.
    fn row_format(&self) -> (usize, RowFormat) {
        let format = match self.numerics {
            Numerics::Exact => RowFormat::F32,
            Numerics::Official => RowFormat::Bf16,
        };
        (self.config.hidden_size, format)
    }

    fn hyper_params(&self) -> HyperParams {
        HyperParams {
            num_streams: self.config.hc_mult,
            sinkhorn_iters: self.config.hc_sinkhorn_iters,
            hc_eps: self.config.hc_eps,
            norm_eps: self.config.rms_norm_eps,
        }
    }

    /// Rounds to the activation type.
    fn cast(&self, x: &mut [f32]) {
        match self.numerics {
            Numerics::Exact => {}
            Numerics::Official => round_bf16(&self.cpu, x),
        }
    }

    /// `[..][row_len]` with e4m3 blocks that do not cross rows.
    fn fp8_rows(&self, x: &mut [f32], row_len: usize, block: usize) {
        if row_len.is_multiple_of(block) {
            fp8_round_trip(&self.cpu, x, block);
        } else {
            x.chunks_mut(row_len).for_each(|row| fp8_round_trip(&self.cpu, row, block));
        }
    }

    /// Rounds an entry or window row as official numerics stores it: all but the rotated channels.
    fn quantize_kv_row(&self, row: &mut [f32]) {
        match self.numerics {
            Numerics::Exact => {}
            Numerics::Official => {
                let rotated = row.len() - self.config.qk_rope_head_dim;
                fp8_round_trip(&self.cpu, &mut row[..rotated], KV_BLOCK);
                round_bf16(&self.cpu, &mut row[..rotated]);
            }
        }
    }

    /// Rounds indexer queries or keys as official numerics compares them.
    fn quantize_index_rows(&self, x: &mut [f32]) {
        match self.numerics {
            Numerics::Exact => {}
            Numerics::Official => {
                let head_dim = self.config.index_head_dim;
                hadamard(&self.cpu, x, head_dim);
                round_bf16(&self.cpu, x);
                x.chunks_mut(head_dim).for_each(|head| fp4_round_trip(&self.cpu, head));
                round_bf16(&self.cpu, x);
            }
        }
    }

    /// `x W^T` into `out`, of an input that is quantised first if the matrix asks for it.
    fn product(&mut self, weight: &CpuMatrix, x: &[f32], out: &mut [f32]) {
        if weight.quantizes_input() {
            let mut quantized = std::mem::take(&mut self.scratch);
            quantized.clear();
            quantized.extend_from_slice(x);
            self.fp8_rows(&mut quantized, weight.cols(), ACTIVATION_BLOCK);
            matmul(&self.cpu, &quantized, &weight.view(), out);
            self.scratch = quantized;
        } else {
            matmul(&self.cpu, x, &weight.view(), out);
        }
    }
}

fn hyper_view<'a>(weights: &'a HyperWeights<CpuBackend>) -> hyper::HyperWeights<'a> {
    hyper::HyperWeights {
        function: weights.function.view(),
        base: &weights.base,
        scale: &weights.scale,
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Vector = Vec<f32>;
    type Matrix = CpuMatrix;
    type IdTable = Vec<u32>;
    type Routes = Routes;
    type Experts = CpuExperts;
    type Cache = CpuCache;
    type Mix = HyperCoefficients;
    type Routing = CpuRouting;
    type Selection = CpuSelection;
    type Received = CpuReceived;
    type Buffer = Vec<u8>;

    fn tensor(&self, cols: usize) -> CpuTensor {
        CpuTensor::new(Vec::new(), cols)
    }

    fn upload(&self, data: Vec<f32>, cols: usize) -> CpuTensor {
        CpuTensor::new(data, cols)
    }

    fn download(&self, tensor: &CpuTensor) -> Vec<f32> {
        tensor.data().to_vec()
    }

    fn vector(&self, data: Vec<f32>) -> Vec<f32> {
        data
    }

    fn matrix(&self, source: weights::Matrix<'_>) -> CpuMatrix {
        CpuMatrix::new(source, self.numerics)
    }

    fn grouped_matrix(&self, source: weights::Matrix<'_>, groups: usize) -> CpuMatrix {
        CpuMatrix::grouped(source, groups)
    }

    fn id_table(&self, data: Vec<u32>) -> Vec<u32> {
        data
    }

    fn routes(&self, routes: Routes) -> Routes {
        routes
    }

    fn experts(&self, slots: Vec<Option<MlpWeights<CpuMatrix>>>) -> CpuExperts {
        CpuExperts::new(slots)
    }

    fn cache(&self, layout: &LayerLayout) -> CpuCache {
        CpuCache::new(layout, self.numerics)
    }

    fn mix(&self) -> HyperCoefficients {
        HyperCoefficients::default()
    }

    fn routing(&self) -> CpuRouting {
        CpuRouting::default()
    }

    fn selection(&self) -> CpuSelection {
        CpuSelection::default()
    }

    fn received(&self) -> CpuReceived {
        CpuReceived::default()
    }

    fn num_received(&self, received: &CpuReceived) -> Option<usize> {
        Some(received.num_assignments())
    }

    fn buffer(&self) -> Vec<u8> {
        Vec::new()
    }

    fn finish_load(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn begin_step(&mut self, spans: &[Span<'_>]) {
        let positions = || spans.iter().flat_map(|span| span.first_position..span.end_position());
        self.main_angles.clear();
        self.main_angles.extend(positions().map(|p| self.main_rope.angles(p as u32)));
        self.compress_angles.clear();
        self.compress_angles.extend(positions().map(|p| self.compress_rope.angles(p as u32)));
    }

    fn end_step(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn embed(&mut self, table: &CpuMatrix, ids: &[u32], streams: &mut CpuTensor) {
        let table = table.view();
        streams.resize(ids.len());
        for (&id, row) in ids.iter().zip(streams.rows_mut()) {
            let (first, rest) = row.split_at_mut(table.cols());
            table.widen_row(&self.cpu, id as usize, first);
            self.cast(first);
            rest.chunks_mut(table.cols()).for_each(|stream| stream.copy_from_slice(first));
        }
    }

    fn hyper_pre(
        &mut self,
        weights: &HyperWeights<Self>,
        streams: &CpuTensor,
        mix: &mut HyperCoefficients,
        x: &mut CpuTensor,
    ) {
        let params = self.hyper_params();
        *mix = hc_coefficients(&self.cpu, streams.data(), &hyper_view(weights), &params);
        x.resize(streams.num_rows());
        hc_collapse(&self.cpu, streams.data(), &mix.pre, self.config.hidden_size, x.data_mut());
        self.cast(x.data_mut());
    }

    fn hyper_post(&mut self, y: &CpuTensor, mix: &HyperCoefficients, streams: &mut CpuTensor) {
        let expand =
            HyperExpand { y: y.data(), coefficients: mix, hidden: self.config.hidden_size };
        let mut mixed = std::mem::take(&mut self.scratch);
        mixed.resize(streams.data().len(), 0.0);
        hc_expand(&self.cpu, streams.data(), &expand, &mut mixed);
        self.cast(&mut mixed);
        self.scratch = streams.replace(mixed);
    }

    fn hyper_head(&mut self, weights: &HyperWeights<Self>, streams: &CpuTensor, x: &mut CpuTensor) {
        let pre = hc_head(&self.cpu, streams.data(), &hyper_view(weights), &self.hyper_params());
        x.resize(streams.num_rows());
        hc_collapse(&self.cpu, streams.data(), &pre, self.config.hidden_size, x.data_mut());
        self.cast(x.data_mut());
    }

    fn norm(&mut self, weight: &Vec<f32>, x: &mut CpuTensor) {
        rms_norm(&self.cpu, x.data_mut(), weight, self.config.rms_norm_eps);
        self.cast(x.data_mut());
    }

    fn norm_heads(&mut self, x: &mut CpuTensor) {
        let (head_dim, eps) = (self.config.head_dim, self.config.rms_norm_eps);
        rms_norm_unweighted(&self.cpu, x.data_mut(), head_dim, eps);
        self.cast(x.data_mut());
    }

    fn linear(&mut self, weight: &CpuMatrix, x: &CpuTensor, out: &mut CpuTensor) {
        out.reshape(x.num_rows(), weight.rows());
        self.product(weight, x.data(), out.data_mut());
        self.cast(out.data_mut());
    }

    fn linear_f32(&mut self, weight: &CpuMatrix, x: &CpuTensor, out: &mut CpuTensor) {
        out.reshape(x.num_rows(), weight.rows());
        matmul(&self.cpu, x.data(), &weight.view(), out.data_mut());
    }

    fn grouped_linear(&mut self, weight: &CpuMatrix, x: &CpuTensor, out: &mut CpuTensor) {
        out.reshape(x.num_rows(), weight.rows());
        matmul_block_diagonal(&self.cpu, x.data(), &weight.view(), weight.groups(), out.data_mut());
        self.cast(out.data_mut());
    }

    fn rope(&mut self, table: RopeTable, rotation: Rotation, head_dim: usize, x: &mut CpuTensor) {
        let angles = match table {
            RopeTable::Main => &self.main_angles,
            RopeTable::Compress => &self.compress_angles,
        };
        for (row, angles) in x.rows_mut().zip(angles) {
            match rotation {
                Rotation::Forward => rope(row, head_dim, angles),
                Rotation::Inverse => rope_inverse(row, head_dim, angles),
            }
        }
        self.cast(x.data_mut());
    }

    fn quantize_kv(&mut self, kv: &mut CpuTensor) {
        kv.rows_mut().for_each(|row| self.quantize_kv_row(row));
    }

    fn quantize_index(&mut self, q: &mut CpuTensor) {
        self.quantize_index_rows(q.data_mut());
    }

    fn compress(
        &mut self,
        input: &CompressInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut CpuCache,
    ) {
        self.compress_spans(input, spans, cache);
    }

    fn select(
        &mut self,
        input: &SelectInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &CpuCache,
        selection: &mut CpuSelection,
    ) {
        self.select_entries(input, spans, cache, selection);
    }

    fn attend(
        &mut self,
        input: &AttendInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut CpuCache,
        out: &mut CpuTensor,
    ) {
        self.attend_spans(input, spans, cache, out);
    }

    fn gate(
        &mut self,
        weights: &GateWeights<Self>,
        x: &CpuTensor,
        ids: &[u32],
        routing: &mut CpuRouting,
    ) {
        self.route_rows(weights, x, ids, routing);
    }

    fn pack_dispatch(
        &mut self,
        routes: &Routes,
        x: &CpuTensor,
        routing: &mut CpuRouting,
        outbound: &mut [Vec<u8>],
    ) {
        routing.pack(routes, x.data(), self.row_format(), outbound);
    }

    fn unpack_dispatch(
        &mut self,
        inbound: &[Vec<u8>],
        num_slots: usize,
        received: &mut CpuReceived,
    ) -> Result<(), FrameError> {
        received.unpack(inbound, num_slots, self.row_format())
    }

    fn run_experts(&mut self, experts: &CpuExperts, received: &mut CpuReceived) {
        self.run_received(experts, received);
    }

    fn pack_combine(&mut self, received: &CpuReceived, outbound: &mut [Vec<u8>]) {
        received.answer(self.row_format(), outbound);
    }

    fn unpack_combine(
        &mut self,
        inbound: &[Vec<u8>],
        routing: &CpuRouting,
        y: &mut CpuTensor,
    ) -> Result<(), FrameError> {
        self.combine_rows(inbound, routing, y)
    }

    fn swiglu(&mut self, gate: &mut CpuTensor, up: &CpuTensor) {
        let limit = self.config.swiglu_limit;
        let mut out = std::mem::take(&mut self.scratch);
        out.resize(gate.data().len(), 0.0);
        let args = Swiglu { gate: gate.data(), up: up.data(), limit, routing_weights: None };
        swiglu(&self.cpu, &args, &mut out);
        self.cast(&mut out);
        self.scratch = gate.replace(out);
    }

    fn take_rows(&mut self, x: &CpuTensor, rows: &[usize], out: &mut CpuTensor) {
        out.reshape(rows.len(), x.cols());
        for (&row, out) in rows.iter().zip(out.rows_mut()) {
            out.copy_from_slice(x.row(row));
        }
    }

    fn sample(&mut self, logits: &CpuTensor, requests: &[SampleRequest<'_>]) -> Vec<Sample> {
        let rows = requests.iter().enumerate();
        rows.map(|(row, request)| self.sample_row(logits.row(row), request)).collect()
    }
}

impl CpuBackend {
    fn sample_row(&self, logits: &[f32], request: &SampleRequest<'_>) -> Sample {
        let SampleRequest { params, position, adjustment } = *request;
        let sampling = Sampling {
            temperature: params.temperature,
            min_p: params.min_p,
            top_k: params.top_k,
            top_p: params.top_p,
            key: DrawKey { seed: params.seed, choice: params.choice, position },
        };
        let token_id = if adjustment.is_empty() {
            sampling::sample(&self.cpu, logits, &sampling)
        } else {
            let mut adjusted = logits.to_vec();
            adjustment.apply(&mut adjusted);
            sampling::sample(&self.cpu, &adjusted, &sampling)
        };
        if !params.logprobs && params.num_top_logprobs == 0 {
            return Sample { token_id, logprob: 0.0, top_logprobs: Vec::new() };
        }
        let log_probs = LogProbs::new(&self.cpu, logits);
        let logprob = if params.logprobs { log_probs.get(token_id) } else { 0.0 };
        let top_logprobs = log_probs.top(params.num_top_logprobs as usize);
        Sample { token_id, logprob, top_logprobs }
    }
}
