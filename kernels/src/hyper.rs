//! Manifold-constrained hyper-connections: how a layer reads from and writes to the residual streams.
//!
//! A token's residual state is `num_streams` vectors of `hidden` channels, `[num_streams, hidden]`, in `f32`.
//! Before a sublayer they are collapsed into its input, after it they are mixed with its output:
//!
//! ```text
//! x    = Σ_j pre[j] h[j]
//! h'_k = post[k] y + Σ_j comb[j, k] h[j]
//! ```

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::math::{exp_v, sigmoid_v};
use crate::matmul::{WeightMatrix, matmul};
use crate::norm::inverse_rms;
use crate::simd::{Kernel, LANES, Scalar, Wide, axpy, map_lanes};

/// Constants of the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperParams {
    /// Residual streams (`hc_mult`).
    pub num_streams: usize,
    /// Normalisations of the mixing matrix's columns (`hc_sinkhorn_iters`).
    pub sinkhorn_iters: usize,
    /// `hc_eps`.
    pub hc_eps: f32,
    /// `rms_norm_eps`.
    pub norm_eps: f32,
}

/// Parameters of one sublayer's connections, or of the head's.
#[derive(Clone, Debug)]
pub struct HyperWeights<'a> {
    /// `[num_outputs, num_streams * hidden]`; a sublayer has `(2 + num_streams) * num_streams` outputs, the head `num_streams`.
    pub function: WeightMatrix<'a>,
    /// `[num_outputs]`.
    pub base: &'a [f32],
    /// pre, post, comb for a sublayer; one element for the head.
    pub scale: &'a [f32],
}

/// Mixing coefficients of the tokens of a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HyperCoefficients {
    /// `[num_tokens, num_streams]`
    pub pre: Vec<f32>,
    /// `[num_tokens, num_streams]`
    pub post: Vec<f32>,
    /// `[num_tokens, num_streams, num_streams]`, from stream j to stream k.
    pub comb: Vec<f32>,
}

/// What a sublayer's result is mixed with.
#[derive(Clone, Copy, Debug)]
pub struct HyperExpand<'a> {
    /// The sublayer's output, `[num_tokens, hidden]`.
    pub y: &'a [f32],
    /// Of the same call as the input's `pre`.
    pub coefficients: &'a HyperCoefficients,
    /// Channels of a stream.
    pub hidden: usize,
}

/// Computes a sublayer's coefficients from the streams `h` `[num_tokens, num_streams, hidden]`.
///
/// # Panics
///
/// If a length does not fit the parameters.
pub fn hc_coefficients(
    cpu: &Cpu,
    h: &[f32],
    weights: &HyperWeights<'_>,
    params: &HyperParams,
) -> HyperCoefficients {
    let n = params.num_streams;
    let num_outputs = (2 + n) * n;
    assert_eq!(weights.function.rows(), num_outputs, "outputs of the function");
    assert_eq!(weights.base.len(), num_outputs, "length of the base");
    assert_eq!(weights.scale.len(), 3, "length of the scale");
    let mixed = mixed_streams(cpu, h, weights, params);
    let num_tokens = mixed.len() / num_outputs;
    let mut out = HyperCoefficients {
        pre: vec![0.0; num_tokens * n],
        post: vec![0.0; num_tokens * n],
        comb: vec![0.0; num_tokens * n * n],
    };
    cpu.run(Coefficients { mixed: &mixed, weights, params, out: &mut out });
    out
}

/// Computes the head's `pre` `[num_tokens, num_streams]` from the streams `h` `[num_tokens, num_streams, hidden]`.
///
/// # Panics
///
/// If a length does not fit the parameters.
pub fn hc_head(cpu: &Cpu, h: &[f32], weights: &HyperWeights<'_>, params: &HyperParams) -> Vec<f32> {
    let n = params.num_streams;
    assert_eq!(weights.function.rows(), n, "outputs of the function");
    assert_eq!(weights.base.len(), n, "length of the base");
    assert_eq!(weights.scale.len(), 1, "length of the scale");
    let mut pre = mixed_streams(cpu, h, weights, params);
    cpu.run(HeadCoefficients { weights, hc_eps: params.hc_eps, pre: &mut pre });
    pre
}

/// `x = Σ_j pre[j] h[j]`, streams in order; `h` `[num_tokens, num_streams, hidden]`, `pre` `[num_tokens, num_streams]`,
/// `x` `[num_tokens, hidden]`.
///
/// # Panics
///
/// If the lengths do not stand for the same number of tokens.
pub fn hc_collapse(cpu: &Cpu, h: &[f32], pre: &[f32], hidden: usize, x: &mut [f32]) {
    let num_tokens = x.len() / hidden;
    assert_eq!(h.len(), pre.len() * hidden, "length of the streams");
    assert_eq!(pre.len() % num_tokens.max(1), 0, "coefficients over {num_tokens} tokens");
    cpu.run(Collapse { h, pre, hidden, x });
}

/// `h'_k = post[k] y + Σ_j comb[j, k] h[j]`, into `out`; both `h` and `out` are `[num_tokens, num_streams, hidden]`.
///
/// # Panics
///
/// If the lengths do not stand for the same number of tokens.
pub fn hc_expand(cpu: &Cpu, h: &[f32], args: &HyperExpand<'_>, out: &mut [f32]) {
    let HyperExpand { y, coefficients, hidden } = *args;
    assert_eq!(h.len(), coefficients.post.len() * hidden, "length of the streams");
    assert_eq!(out.len(), h.len(), "length of the new streams");
    assert_eq!(y.len() % hidden, 0, "length of the sublayer's output");
    cpu.run(Expand { h, args, out });
}

/// `(function · flat) * rsqrt(mean(flat²) + eps)` with `flat` all streams of a token.
fn mixed_streams(
    cpu: &Cpu,
    h: &[f32],
    weights: &HyperWeights<'_>,
    params: &HyperParams,
) -> Vec<f32> {
    let (rows, cols) = (weights.function.rows(), weights.function.cols());
    let mut mixed = vec![0.0; h.len() / cols * rows];
    matmul(cpu, h, &weights.function, &mut mixed);
    cpu.run(ScaleByRms { h, cols, rows, mixed: &mut mixed, eps: params.norm_eps });
    mixed
}

/// Turns the logits of a mixing matrix `[n, n]` into an almost doubly stochastic one: softmax of the rows, then columns and rows
/// in turn.
#[inline(always)]
fn sinkhorn(comb: &mut [f32], params: &HyperParams) {
    let (n, eps) = (params.num_streams, params.hc_eps);
    for row in comb.chunks_exact_mut(n) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for c in row.iter_mut() {
            *c = exp_v(Scalar, *c - max);
        }
        let sum: f32 = row.iter().sum();
        for c in row.iter_mut() {
            *c = *c / sum + eps;
        }
    }
    normalise_columns(comb, n, eps);
    for _ in 1..params.sinkhorn_iters {
        for row in comb.chunks_exact_mut(n) {
            let sum: f32 = row.iter().sum::<f32>() + eps;
            for c in row.iter_mut() {
                *c /= sum;
            }
        }
        normalise_columns(comb, n, eps);
    }
}

#[inline(always)]
fn normalise_columns(comb: &mut [f32], n: usize, eps: f32) {
    for column in 0..n {
        let sum: f32 = comb.iter().skip(column).step_by(n).sum::<f32>() + eps;
        for c in comb.iter_mut().skip(column).step_by(n) {
            *c /= sum;
        }
    }
}

struct Coefficients<'a> {
    /// `[num_tokens, num_outputs]`
    mixed: &'a [f32],
    weights: &'a HyperWeights<'a>,
    params: &'a HyperParams,
    out: &'a mut HyperCoefficients,
}

impl Kernel for Coefficients<'_> {
    type Output = ();

    /// A few numbers a token: scalars, compiled for the instruction set for its fused multiply-add.
    #[inline(always)]
    fn run<S: Wide>(self, _s: S) {
        let Self { mixed, weights: HyperWeights { base, scale, .. }, params, out } = self;
        let n = params.num_streams;
        let outputs = out.pre.chunks_exact_mut(n).zip(out.post.chunks_exact_mut(n));
        let outputs = outputs.zip(out.comb.chunks_exact_mut(n * n));
        for (m, ((pre, post), comb)) in mixed.chunks_exact((2 + n) * n).zip(outputs) {
            for i in 0..n {
                pre[i] = sigmoid_v(Scalar, m[i] * scale[0] + base[i]) + params.hc_eps;
                post[i] = 2.0 * sigmoid_v(Scalar, m[n + i] * scale[1] + base[n + i]);
            }
            for (i, comb) in comb.iter_mut().enumerate() {
                *comb = m[2 * n + i] * scale[2] + base[2 * n + i];
            }
            sinkhorn(comb, params);
        }
    }
}

struct HeadCoefficients<'a> {
    weights: &'a HyperWeights<'a>,
    hc_eps: f32,
    pre: &'a mut [f32],
}

impl Kernel for HeadCoefficients<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, _s: S) {
        let Self { weights: HyperWeights { base, scale, .. }, hc_eps, pre } = self;
        for (i, m) in pre.iter_mut().enumerate() {
            *m = sigmoid_v(Scalar, *m * scale[0] + base[i % base.len()]) + hc_eps;
        }
    }
}

struct ScaleByRms<'a> {
    h: &'a [f32],
    cols: usize,
    rows: usize,
    mixed: &'a mut [f32],
    eps: f32,
}

impl Kernel for ScaleByRms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let tokens = self.h.chunks_exact(self.cols).zip(self.mixed.chunks_exact_mut(self.rows));
        for (flat, mixed) in tokens {
            let inverse = s.splat(inverse_rms(s, flat, self.eps));
            map_lanes!(s, mixed, |m| s.mul(m, inverse));
        }
    }
}

struct Collapse<'a> {
    h: &'a [f32],
    pre: &'a [f32],
    hidden: usize,
    x: &'a mut [f32],
}

impl Kernel for Collapse<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Self { h, pre, hidden, x } = self;
        x.fill(0.0);
        let n = pre.len() * hidden / x.len().max(1);
        let tokens = h.chunks_exact(n * hidden).zip(pre.chunks_exact(n));
        for ((h, pre), x) in tokens.zip(x.chunks_exact_mut(hidden)) {
            for (stream, &pre) in h.chunks_exact(hidden).zip(pre) {
                axpy(s, pre, stream, x);
            }
        }
    }
}

struct Expand<'a> {
    h: &'a [f32],
    args: &'a HyperExpand<'a>,
    out: &'a mut [f32],
}

impl Kernel for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let HyperExpand { y, coefficients, hidden } = *self.args;
        let n = coefficients.post.len() * hidden / y.len().max(1);
        let coefficients =
            coefficients.post.chunks_exact(n).zip(coefficients.comb.chunks_exact(n * n));
        let tokens = self.h.chunks_exact(n * hidden).zip(self.out.chunks_exact_mut(n * hidden));
        for (((h, out), y), (post, comb)) in tokens.zip(y.chunks_exact(hidden)).zip(coefficients) {
            for (k, out) in out.chunks_exact_mut(hidden).enumerate() {
                scaled(s, post[k], y, out);
                for (j, h) in h.chunks_exact(hidden).enumerate() {
                    axpy(s, comb[j * n + k], h, out);
                }
            }
        }
    }
}

/// `out = a * x`.
#[inline(always)]
fn scaled<S: Wide>(s: S, a: f32, x: &[f32], out: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for (x, out) in chunks.iter().zip(out) {
        s.store(s.mul(s.splat(a), s.load(x)), out);
    }
    for (x, out) in tail.iter().zip(out_tail) {
        *out = a * x;
    }
}
