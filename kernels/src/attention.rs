//! Attention of one query token over a list of key rows that are also the values, with a sink.

#[cfg(test)]
mod tests;

use half::bf16;

use crate::Cpu;
use crate::math::{exp, exp_v};
use crate::quant::round_bf16_v;
use crate::simd::{Kernel, Wide, axpy, dot, map_in_place, max, sum};

/// Rows of one length, wherever they lie; read in this order.
#[derive(Clone, Copy, Debug)]
pub enum KeyRows<'a> {
    /// `f32`, of exact numerics.
    F32(&'a [&'a [f32]]),
    /// bf16, which holds the entries of official numerics exactly.
    Bf16(&'a [&'a [bf16]]),
}

/// How probabilities enter the weighted sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probabilities {
    /// As `f32`.
    Exact,
    /// Rounded to bf16, except in the denominator: official numerics.
    Bf16,
}

/// One query token.
#[derive(Clone, Copy, Debug)]
pub struct SparseAttention<'a> {
    /// `[num_heads, head_dim]`
    pub q: &'a [f32],
    /// `[num_heads]`, logits that are not scaled.
    pub sink: &'a [f32],
    /// Rows of `head_dim`, in rising position: compressed entries are listed in a fixed place relative to the window, because
    /// sums depend on the order.
    pub keys: KeyRows<'a>,
    /// Factor of `q · k`.
    pub softmax_scale: f32,
    /// Rounding of probabilities.
    pub probabilities: Probabilities,
}

/// `out[h] = Σ_j e_j keys[j] / (Σ_j e_j + exp(sink[h] - max))` with `e_j = exp(q[h] · keys[j] * softmax_scale - max)`; `out` is
/// `[num_heads, head_dim]`.
///
/// # Panics
///
/// If there is no key, or a length does not fit.
pub fn sparse_attention(cpu: &Cpu, args: &SparseAttention<'_>, out: &mut [f32]) {
    assert!(!args.keys.is_empty(), "a query sees at least its own token");
    assert_eq!(args.q.len(), out.len(), "length of the query");
    assert_eq!(args.q.len() % args.sink.len(), 0, "length of the query over the heads");
    let head_dim = args.q.len() / args.sink.len();
    cpu.run(Attention { args, head_dim, out });
}

impl KeyRows<'_> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::Bf16(rows) => rows.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Widens row `i`.
    #[inline(always)]
    pub(crate) fn widen<S: Wide>(&self, _s: S, i: usize, out: &mut [f32]) {
        match self {
            Self::F32(rows) => out.copy_from_slice(rows[i]),
            Self::Bf16(rows) => {
                assert_eq!(rows[i].len(), out.len(), "length of a key row");
                for (out, x) in out.iter_mut().zip(rows[i]) {
                    *out = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
        }
    }
}

struct Attention<'a> {
    args: &'a SparseAttention<'a>,
    head_dim: usize,
    out: &'a mut [f32],
}

impl Kernel for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Self { args, head_dim, out } = self;
        let num_keys = args.keys.len();
        let mut key = vec![0.0; head_dim];
        let mut logits = vec![0.0; args.sink.len() * num_keys];
        for j in 0..num_keys {
            args.keys.widen(s, j, &mut key);
            for (h, q) in args.q.chunks_exact(head_dim).enumerate() {
                logits[h * num_keys + j] = dot(s, q, &key) * args.softmax_scale;
            }
        }
        let mut inverse = vec![0.0; args.sink.len()];
        for ((logits, &sink), inverse) in
            logits.chunks_exact_mut(num_keys).zip(args.sink).zip(&mut inverse)
        {
            *inverse = 1.0 / softmax_numerators(s, logits, sink, args.probabilities);
        }
        out.fill(0.0);
        for j in 0..num_keys {
            args.keys.widen(s, j, &mut key);
            for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
                axpy(s, logits[h * num_keys + j], &key, out);
            }
        }
        for (out, inverse) in out.chunks_exact_mut(head_dim).zip(inverse) {
            map_in_place(s, out, |x| s.mul(x, s.splat(inverse)));
        }
    }
}

/// Turns logits into numerators and returns the denominator.
#[inline(always)]
fn softmax_numerators<S: Wide>(
    s: S,
    logits: &mut [f32],
    sink: f32,
    probabilities: Probabilities,
) -> f32 {
    let max = max(s, logits);
    map_in_place(s, logits, |x| exp_v(s, s.sub(x, s.splat(max))));
    let denominator = sum(s, logits) + exp(sink - max);
    if probabilities == Probabilities::Bf16 {
        map_in_place(s, logits, |x| round_bf16_v(s, x));
    }
    denominator
}
