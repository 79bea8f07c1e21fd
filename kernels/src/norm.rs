//! Root-mean-square normalisation.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::simd::{Kernel, LANES, Wide, dot, map_lanes};

/// `x * rsqrt(mean(x²) + eps) * weight`, in place, for each row of `x` `[num_rows, weight.len()]`.
///
/// # Panics
///
/// If `x` does not hold whole rows.
pub fn rms_norm(cpu: &Cpu, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len() % weight.len(), 0, "length of x over rows of {}", weight.len());
    cpu.run(RmsNorm { x, row_len: weight.len(), weight: Some(weight), eps });
}

/// `x * rsqrt(mean(x²) + eps)`, in place, for each row of `x` `[num_rows, row_len]`: the norm of a query head.
///
/// # Panics
///
/// If `x` does not hold whole rows.
pub fn rms_norm_unweighted(cpu: &Cpu, x: &mut [f32], row_len: usize, eps: f32) {
    assert_eq!(x.len() % row_len, 0, "length of x over rows of {row_len}");
    cpu.run(RmsNorm { x, row_len, weight: None, eps });
}

/// `rsqrt(mean(x²) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms<S: Wide>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(s, x, x) / x.len() as f32 + eps).sqrt()
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    row_len: usize,
    weight: Option<&'a [f32]>,
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.row_len) {
            let inverse = s.splat(inverse_rms(s, row, self.eps));
            match self.weight {
                Some(weight) => scale_by(s, row, inverse, weight),
                None => map_lanes!(s, row, |x| s.mul(x, inverse)),
            }
        }
    }
}

/// `row = row * factor * weight`, rounded after each product.
#[inline(always)]
fn scale_by<S: Wide>(s: S, row: &mut [f32], factor: S::F, weight: &[f32]) {
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    for (x, weight) in chunks.iter_mut().zip(weights) {
        s.store(s.mul(s.mul(s.load(x), factor), s.load(weight)), x);
    }
    if !tail.is_empty() {
        let weight = s.load_partial(weight_tail, 0.0);
        let y = s.mul(s.mul(s.load_partial(tail, 0.0), factor), weight);
        s.store_partial(y, tail);
    }
}
