//! Register tiles: a few tokens times a few rows, each an accumulator of sixteen lanes.

use super::format::{Format, Row};
use super::{InputGroup, Out, WeightMatrix};
use crate::simd::{LANES, Wide};

/// Rows that are widened together for many tokens.
const ROW_GROUP: usize = 8;
/// Vectors of a row that are widened at a time: with [`ROW_GROUP`], 16 KiB, half of a small level-1 cache.
const WIDENED_VECTORS: usize = 32;
/// Tokens that share a widening.
const TOKEN_BLOCK: usize = 48;

/// One product in tiles.
pub(super) struct Tiles<'a, F, const B: usize> {
    pub(super) x: InputGroup<'a>,
    pub(super) weights: WeightMatrix<'a>,
    pub(super) out: Out<'a>,
    pub(super) format: F,
}

impl<F: Format<B>, const B: usize> Tiles<'_, F, B> {
    #[inline(always)]
    pub(super) fn run<S: Wide>(mut self, s: S) {
        let mut token = 0;
        while token < self.x.num_tokens {
            let left = self.x.num_tokens - token;
            token += match left {
                1 if S::MANY_REGISTERS => self.direct_rows::<S, 1, 8>(s, token),
                2 if S::MANY_REGISTERS => self.direct_rows::<S, 2, 8>(s, token),
                3 if S::MANY_REGISTERS => self.direct_rows::<S, 3, 8>(s, token),
                1 => self.direct_rows::<S, 1, 4>(s, token),
                2 => self.direct_rows::<S, 2, 2>(s, token),
                _ => self.widened_rows(s, token, left.min(TOKEN_BLOCK)),
            };
        }
    }

    /// All rows for `T` tokens, each weight widened in registers. Returns `T`.
    #[inline(always)]
    fn direct_rows<S: Wide, const T: usize, const R: usize>(
        &mut self,
        s: S,
        token: usize,
    ) -> usize {
        let whole = self.weights.rows() / R * R;
        for row in (0..whole).step_by(R) {
            self.direct::<S, T, R>(s, token, row);
        }
        for row in whole..self.weights.rows() {
            self.direct::<S, T, 1>(s, token, row);
        }
        T
    }

    #[inline(always)]
    fn direct<S: Wide, const T: usize, const R: usize>(&mut self, s: S, token: usize, row: usize) {
        let x: [_; T] = std::array::from_fn(|t| self.x.row(token + t));
        let rows: [Row<'_, B>; R] = std::array::from_fn(|r| self.weights.row(row + r));
        let mut acc = [[s.splat(0.0); R]; T];
        accumulate(s, self.format, x, &rows, &mut acc);
        for (t, acc) in acc.iter().enumerate() {
            for (r, &acc) in acc.iter().enumerate() {
                self.out.set(token + t, row + r, s.sum(acc));
            }
        }
    }

    /// All rows for `num_tokens` tokens, each weight widened once. Returns `num_tokens`.
    #[inline(always)]
    fn widened_rows<S: Wide>(&mut self, s: S, token: usize, num_tokens: usize) -> usize {
        for row in (0..self.weights.rows()).step_by(ROW_GROUP) {
            let mut lanes = [[[0.0; LANES]; ROW_GROUP]; TOKEN_BLOCK];
            let lanes = &mut lanes[..num_tokens];
            self.row_group(s, token, row, lanes);
            let num_rows = ROW_GROUP.min(self.weights.rows() - row);
            for (t, lanes) in lanes.iter().enumerate() {
                for (r, lanes) in lanes[..num_rows].iter().enumerate() {
                    self.out.set(token + t, row + r, s.sum(s.load(lanes)));
                }
            }
        }
        num_tokens
    }

    /// Lanes of up to [`ROW_GROUP`] rows, from `row`, times the tokens from `token`.
    #[inline(always)]
    fn row_group<S: Wide>(&self, s: S, token: usize, row: usize, lanes: &mut [RowLanes]) {
        let num_rows = ROW_GROUP.min(self.weights.rows() - row);
        // Rows past the end repeat the last one; their lanes are not used.
        let rows: [Row<'_, B>; ROW_GROUP] =
            std::array::from_fn(|r| self.weights.row(row + r.min(num_rows - 1)));
        let num_vectors = self.x.cols / LANES;
        let mut widened = [[[0.0; LANES]; WIDENED_VECTORS]; ROW_GROUP];
        for first in (0..num_vectors).step_by(WIDENED_VECTORS) {
            let last = num_vectors.min(first + WIDENED_VECTORS);
            for (row, widened) in rows.iter().zip(&mut widened) {
                widen(s, self.format, row, first, &mut widened[..last - first]);
            }
            let mut t = 0;
            while t < lanes.len() {
                let x = |t: usize| &self.x.row(token + t)[first..last];
                if S::MANY_REGISTERS && t + 3 <= lanes.len() {
                    tile::<S, 3, 8>(s, [x(t), x(t + 1), x(t + 2)], &widened, &mut lanes[t..]);
                    t += 3;
                } else if S::MANY_REGISTERS {
                    tile::<S, 1, 8>(s, [x(t)], &widened, &mut lanes[t..]);
                    t += 1;
                } else if t + 2 <= lanes.len() {
                    tile::<S, 2, 2>(s, [x(t), x(t + 1)], &widened, &mut lanes[t..]);
                    t += 2;
                } else {
                    tile::<S, 1, 4>(s, [x(t)], &widened, &mut lanes[t..]);
                    t += 1;
                }
            }
        }
    }
}

/// The accumulators of one token.
type RowLanes = [[f32; LANES]; ROW_GROUP];
/// Part of [`ROW_GROUP`] rows.
type Widened = [[[f32; LANES]; WIDENED_VECTORS]; ROW_GROUP];

impl Out<'_> {
    #[inline(always)]
    fn set(&mut self, token: usize, row: usize, value: f32) {
        self.y[token * self.token_stride + row * self.row_stride] = value;
    }
}

/// `acc[t][r] += x[t] * w[r]` over whole rows.
#[inline(always)]
fn accumulate<S: Wide, F: Format<B>, const B: usize, const T: usize, const R: usize>(
    s: S,
    format: F,
    x: [&[[f32; LANES]]; T],
    rows: &[Row<'_, B>; R],
    acc: &mut [[S::F; R]; T],
) {
    let num_whole = rows[0].chunks.len();
    let num_blocks = num_whole.div_ceil(F::VECTORS_PER_SCALE);
    let mut scales = [s.splat(1.0); R];
    for block in 0..num_blocks {
        for (scale, row) in scales.iter_mut().zip(rows) {
            *scale = format.scale(s, row.scales, block);
        }
        let first = block * F::VECTORS_PER_SCALE;
        for i in first..num_whole.min(first + F::VECTORS_PER_SCALE) {
            let mut xs = [s.splat(0.0); T];
            for (xs, x) in xs.iter_mut().zip(x) {
                *xs = s.load(&x[i]);
            }
            for r in 0..R {
                let w = format.widen(s, &rows[r].chunks[i], scales[r]);
                for t in 0..T {
                    acc[t][r] = s.mul_add(xs[t], w, acc[t][r]);
                }
            }
        }
    }
    if num_whole < x[0].len() {
        for r in 0..R {
            let scale = format.scale(s, rows[r].scales, num_whole / F::VECTORS_PER_SCALE);
            let w = format.widen(s, &rows[r].tail, scale);
            for t in 0..T {
                acc[t][r] = s.mul_add(s.load(&x[t][num_whole]), w, acc[t][r]);
            }
        }
    }
}

/// Widens the vectors of a row from `first` on.
#[inline(always)]
fn widen<S: Wide, F: Format<B>, const B: usize>(
    s: S,
    format: F,
    row: &Row<'_, B>,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    let per_scale = F::VECTORS_PER_SCALE;
    for (j, out) in out.chunks_mut(per_scale).enumerate() {
        let first = first + j * per_scale;
        let scale = format.scale(s, row.scales, first / per_scale);
        for (i, out) in out.iter_mut().enumerate() {
            let codes = row.chunks.get(first + i).unwrap_or(&row.tail);
            s.store(format.widen(s, codes, scale), out);
        }
    }
}

/// `lanes[t][r] += x[t] * widened[r]` for `T` tokens and all rows of the group, `R` at a time.
#[inline(always)]
fn tile<S: Wide, const T: usize, const R: usize>(
    s: S,
    x: [&[[f32; LANES]]; T],
    widened: &Widened,
    lanes: &mut [RowLanes],
) {
    for row in (0..ROW_GROUP).step_by(R) {
        let mut acc = [[s.splat(0.0); R]; T];
        for (acc, lanes) in acc.iter_mut().zip(&*lanes) {
            for (acc, lanes) in acc.iter_mut().zip(&lanes[row..row + R]) {
                *acc = s.load(lanes);
            }
        }
        for i in 0..x[0].len().min(WIDENED_VECTORS) {
            let mut xs = [s.splat(0.0); T];
            for (xs, x) in xs.iter_mut().zip(x) {
                *xs = s.load(&x[i]);
            }
            for r in 0..R {
                let w = s.load(&widened[row + r][i]);
                for t in 0..T {
                    acc[t][r] = s.mul_add(xs[t], w, acc[t][r]);
                }
            }
        }
        for (acc, lanes) in acc.iter().zip(&mut *lanes) {
            for (&acc, lanes) in acc.iter().zip(&mut lanes[row..row + R]) {
                s.store(acc, lanes);
            }
        }
    }
}
