//! Attention of one query token over a list of key rows that are also the values, with a sink.

#[cfg(test)]
mod tests;

use half::bf16;

use crate::Cpu;
use crate::math::exp_v;
use crate::quant::round_bf16_v;
use crate::simd::{
    Kernel, LANES, Lanes, Rows, Scalar, Wide, add_weighted, dots, map_lanes, max, padded, sum,
};

/// Keys that are widened at a time.
pub(crate) const KEY_PIECE: usize = 32;

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

/// Room for [`KEY_PIECE`] widened keys.
pub(crate) struct KeyPiece {
    data: Vec<Lanes>,
    head_dim: usize,
    pub(crate) row_vectors: usize,
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
    fn widen(&self, i: usize, out: &mut [f32]) {
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
        let num_heads = args.sink.len();
        let mut piece = KeyPiece::new(head_dim);
        let q = padded(args.q, head_dim);
        let q = Rows::new(&q, piece.row_vectors);
        let mut logits = vec![0.0; num_heads * num_keys];
        for first in (0..num_keys).step_by(KEY_PIECE) {
            let keys = piece.load(args.keys, first);
            dots(s, (q, num_heads), keys, |h, j, dot| {
                logits[h * num_keys + first + j] = dot * args.softmax_scale;
            });
        }
        let mut inverse = vec![0.0; num_heads];
        for (h, inverse) in inverse.iter_mut().enumerate() {
            let logits = &mut logits[h * num_keys..(h + 1) * num_keys];
            *inverse = 1.0 / softmax_numerators(s, logits, args.sink[h], args.probabilities);
        }
        let mut sums = vec![[0.0; LANES]; num_heads * piece.row_vectors];
        for first in (0..num_keys).step_by(KEY_PIECE) {
            let keys = piece.load(args.keys, first);
            add_weighted(s, (&logits[first..], num_keys), keys, &mut sums);
        }
        let heads = sums.chunks_exact(piece.row_vectors).zip(out.chunks_exact_mut(head_dim));
        for ((sums, out), inverse) in heads.zip(inverse) {
            out.copy_from_slice(&sums.as_flattened()[..head_dim]);
            map_lanes!(s, out, |x| s.mul(x, s.splat(inverse)));
        }
    }
}

// === impl KeyPiece ===

impl KeyPiece {
    pub(crate) fn new(head_dim: usize) -> Self {
        let row_vectors = head_dim.div_ceil(LANES);
        Self { data: vec![[0.0; LANES]; KEY_PIECE * row_vectors], head_dim, row_vectors }
    }

    /// Widens up to [`KEY_PIECE`] rows from `first` on; returns them and their number.
    #[inline(always)]
    pub(crate) fn load(&mut self, keys: KeyRows<'_>, first: usize) -> (Rows<'_>, usize) {
        let num = KEY_PIECE.min(keys.len() - first);
        for (i, to) in self.data.chunks_exact_mut(self.row_vectors).take(num).enumerate() {
            keys.widen(first + i, &mut to.as_flattened_mut()[..self.head_dim]);
        }
        (Rows::new(&self.data, self.row_vectors), num)
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
    map_lanes!(s, logits, |x| exp_v(s, s.sub(x, s.splat(max))));
    let denominator = sum(s, logits) + exp_v(Scalar, sink - max);
    if probabilities == Probabilities::Bf16 {
        map_lanes!(s, logits, |x| round_bf16_v(s, x));
    }
    denominator
}
