//! Ops that take each row by itself.

use switchyard_kernels::cuda::gate::{GateChoice, Routing, gate};
use switchyard_kernels::cuda::hyper::{HyperMix, HyperWeights, hyper_post, hyper_pre};
use switchyard_kernels::cuda::norm::rms_norm;
use switchyard_kernels::cuda::quant::fp8_round_trip;
use switchyard_kernels::cuda::rope::rope;
use switchyard_kernels::cuda::sampling::{SampleParams, sample};
use switchyard_kernels::cuda::swiglu::swiglu;
use switchyard_kernels::cuda::{Elem, Format, Tensor};
use switchyard_kernels::hyper::HyperParams;
use switchyard_kernels::quant::ACTIVATION_BLOCK;
use switchyard_kernels::sampling::Adjustment;

use super::{Bench, Work};

/// Work of an op that only moves bytes.
fn moves(num_bytes: usize) -> Work {
    Work { num_bytes, num_flops: 0 }
}

impl Bench<'_> {
    pub(super) fn rows(&mut self) {
        for &num_rows in &self.options.tokens {
            self.hyper(num_rows);
            self.gate(num_rows);
            self.in_place(num_rows);
            self.swiglu(num_rows);
            if num_rows <= 1024 {
                self.sampling(num_rows);
            }
        }
    }

    fn hyper(&mut self, num_rows: usize) {
        let c = &self.shape.config;
        let (n, hidden) = (c.hc_mult, c.hidden_size);
        let shape = format!("{num_rows} x {n} x {hidden}");
        let names = ["hyper_pre", "hyper_post"].map(|op| self.wanted(op, &shape));
        if names.iter().all(Option::is_none) {
            return;
        }
        let gpu = self.gpu;
        let num_outputs = n * (n + 2);
        let (function_bytes, function) = self.bytes_of(Format::F32, [num_outputs, n * hidden]);
        let function = function.upload(gpu);
        let (base, scale) = (self.floats(num_outputs, 0.1), self.floats(3, 0.1));
        let weights = HyperWeights { function: &function, base: &base, scale: &scale };
        let params = HyperParams {
            num_streams: n,
            sinkhorn_iters: c.hc_sinkhorn_iters,
            hc_eps: c.hc_eps,
            norm_eps: c.rms_norm_eps,
        };
        let mut streams = self.activations(num_rows, n * hidden);
        let (mut mix, mut x) = (HyperMix::new(gpu), Tensor::new(gpu, gpu.act(), hidden));
        hyper_pre(gpu, &weights, &params, (&streams, &mut mix, &mut x));
        let elem = x.elem().num_bytes();
        let [pre, post] = names;
        if let Some(name) = pre {
            let work = Work {
                num_bytes: function_bytes + num_rows * (n + 1) * hidden * elem,
                num_flops: 2 * num_rows * num_outputs * n * hidden,
            };
            self.time(name, work, |_| {
                hyper_pre(gpu, &weights, &params, (&streams, &mut mix, &mut x));
            });
        }
        if let Some(name) = post {
            let work = moves(num_rows * (2 * n + 1) * hidden * elem);
            self.time(name, work, |_| hyper_post(gpu, &x, &mix, &mut streams));
        }
    }

    fn gate(&mut self, num_rows: usize) {
        let c = &self.shape.config;
        let num_experts = c.n_routed_experts;
        let shape = format!("{num_rows} x {num_experts}");
        let Some(name) = self.wanted("gate", &shape) else { return };
        let gpu = self.gpu;
        let logits = self.numbers(Elem::F32, num_rows, num_experts);
        let bias = self.floats(num_experts, 0.0);
        let choice = GateChoice::Score { bias: &bias };
        let scaling = (c.routed_scaling_factor, c.num_experts_per_tok);
        let mut routing = Routing::new(gpu);
        self.time(name, moves(num_rows * (num_experts * 4 + 8 * c.num_experts_per_tok)), |_| {
            gate(gpu, &logits, &choice, scaling, &mut routing);
        });
    }

    /// Norm, rotation and quantisation.
    fn in_place(&mut self, num_rows: usize) {
        let c = &self.shape.config;
        let gpu = self.gpu;
        let elem = gpu.act().num_bytes();
        let hidden = c.hidden_size;
        if let Some(name) = self.wanted("norm", &format!("{num_rows} x {hidden}")) {
            let mut x = self.activations(num_rows, hidden);
            let weight = self.floats(hidden, 1.0);
            self.time(name, moves(2 * num_rows * hidden * elem), |_| {
                rms_norm(gpu, &mut x, &weight, 1e-6);
            });
        }
        if let Some(name) = self.wanted("quantise", &format!("{num_rows} x {hidden}")) {
            let x = self.activations(num_rows, hidden);
            let mut out = Tensor::new(gpu, gpu.act(), hidden);
            self.time(name, moves(2 * num_rows * hidden * elem), |_| {
                fp8_round_trip(gpu, &x, ACTIVATION_BLOCK, &mut out);
            });
        }
        let (heads, rotated) = (c.num_attention_heads, c.qk_rope_head_dim);
        let shape = format!("{num_rows} x {heads} x {rotated} of {}", c.head_dim);
        if let Some(name) = self.wanted("rope", &shape) {
            let mut x = self.activations(num_rows, heads * c.head_dim);
            let angles = self.numbers(Elem::F32, num_rows, rotated);
            self.time(name, moves(num_rows * rotated * (2 * heads * elem + 4)), |_| {
                rope(gpu, &mut x, c.head_dim, &angles, false);
            });
        }
    }

    fn swiglu(&mut self, num_rows: usize) {
        let c = &self.shape.config;
        let gpu = self.gpu;
        // A rank gets as many rows as it sends.
        let (num_rows, width) = (num_rows * c.num_experts_per_tok, c.moe_intermediate_size);
        let Some(name) = self.wanted("swiglu", &format!("{num_rows} x {width}")) else { return };
        let (mut x, up) = (self.activations(num_rows, width), self.activations(num_rows, width));
        let weights = self.floats(num_rows, 0.5);
        let work = moves(3 * num_rows * width * x.elem().num_bytes());
        self.time(name, work, |_| swiglu(gpu, &mut x, &up, c.swiglu_limit, Some(&weights)));
    }

    fn sampling(&mut self, num_rows: usize) {
        let vocab = self.shape.config.vocab_size;
        let gpu = self.gpu;
        for (how, temperature, top_p) in [("greedy", 0.0, 1.0), ("top_p 0.95", 1.0, 0.95)] {
            let shape = format!("{num_rows} x {vocab} {how}");
            let Some(name) = self.wanted("sample", &shape) else { continue };
            let logits = self.numbers(Elem::F32, num_rows, vocab);
            let params = SampleParams {
                seed_lo: 1,
                seed_hi: 2,
                choice: 0,
                position: 3,
                temperature,
                min_p: 0.0,
                top_k: 0,
                top_p,
                num_top_logprobs: 0,
                wants_logprob: 0,
            };
            let params = vec![params; num_rows];
            let adjustments = vec![Adjustment::default(); num_rows];
            self.time(name, moves(num_rows * vocab * 4), |_| {
                // The wait is part of it: the host needs the tokens.
                let _ = sample(gpu, &logits, &params, &adjustments);
            });
        }
    }
}
