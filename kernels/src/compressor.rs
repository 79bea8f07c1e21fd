//! Pooling of a window's rows into one compressed entry.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::math::exp_v;
use crate::simd::{Kernel, LANES, Wide};

/// One row of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolRow<'a> {
    /// Values, `[width]`.
    pub kv: &'a [f32],
    /// Scores with the position's bias added, `[width]`.
    pub score: &'a [f32],
}

/// `out[c] = Σ_r softmax_r(score[r][c]) kv[r][c]`, rows in order. Rows that do not exist (the overlap of a sequence's first
/// window, whose score is minus infinity) are simply not in `rows`.
///
/// # Panics
///
/// If there is no row, or one has another length than `out`.
pub fn compress_pool(cpu: &Cpu, rows: &[PoolRow<'_>], out: &mut [f32]) {
    assert!(!rows.is_empty(), "a window has rows");
    for row in rows {
        assert_eq!(row.kv.len(), out.len(), "length of a pooled row");
        assert_eq!(row.score.len(), out.len(), "length of a row of scores");
    }
    cpu.run(CompressPool { rows, out });
}

struct CompressPool<'a> {
    rows: &'a [PoolRow<'a>],
    out: &'a mut [f32],
}

impl Kernel for CompressPool<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for (i, out) in self.out.chunks_mut(LANES).enumerate() {
            let channels = i * LANES..i * LANES + out.len();
            let mut max = s.splat(f32::NEG_INFINITY);
            for row in self.rows {
                max = s.max(s.load_any(&row.score[channels.clone()]), max);
            }
            let mut total = s.splat(0.0);
            let mut pooled = s.splat(0.0);
            for row in self.rows {
                let score = s.load_any(&row.score[channels.clone()]);
                let e = exp_v(s, s.sub(score, max));
                total = s.add(total, e);
                pooled = s.mul_add(e, s.load_any(&row.kv[channels.clone()]), pooled);
            }
            s.store_any(s.div(pooled, total), out);
        }
    }
}
