//! Register tiles: a few tokens times a few rows, each an accumulator of sixteen lanes.

use super::format::{Format, Row};
use super::{Input, Out, WeightMatrix};
use crate::simd::{Kernel, LANES, Lanes, Rows, Wide};

/// Rows that are worked on together.
const ROW_GROUP: usize = 8;
/// Vectors of a row that are widened at a time: with [`ROW_GROUP`], 16 KiB, half of a small level-1 cache.
const WIDENED_VECTORS: usize = 32;
/// Tokens that share a widening.
const TOKEN_BLOCK: usize = 48;

/// The accumulators of one token.
type RowLanes = [Lanes; ROW_GROUP];
/// Part of [`ROW_GROUP`] rows.
type Widened = [[Lanes; WIDENED_VECTORS]; ROW_GROUP];

/// One product in tiles.
pub(super) struct Tiles<'a, F, const B: usize> {
    pub(super) x: Input<'a>,
    pub(super) weights: WeightMatrix<'a>,
    pub(super) out: Out<'a>,
    pub(super) format: F,
}

impl<F: Format<B>, const B: usize> Tiles<'_, F, B> {
    #[inline(always)]
    pub(super) fn run<S: Wide>(mut self, s: S) {
        for row in (0..self.weights.rows()).step_by(ROW_GROUP) {
            if self.x.num_tokens > 1 {
                for token in (0..self.x.num_tokens).step_by(TOKEN_BLOCK) {
                    self.widened(s, token, row);
                }
            } else if S::MANY_REGISTERS {
                self.direct::<S, ROW_GROUP>(s, row);
            } else {
                self.direct::<S, { ROW_GROUP / 2 }>(s, row);
                self.direct::<S, { ROW_GROUP / 2 }>(s, row + ROW_GROUP / 2);
            }
        }
    }

    /// Up to `R` rows from `row` on; those past the end repeat the last one, and their results are dropped.
    #[inline(always)]
    fn rows<const R: usize>(&self, row: usize) -> [Row<'_, B>; R] {
        let last = self.weights.rows() - 1;
        let mut rows = [self.weights.row(row.min(last)); R];
        for (r, to) in rows.iter_mut().enumerate() {
            *to = self.weights.row((row + r).min(last));
        }
        rows
    }

    /// `R` rows for the one token, each weight widened in registers.
    #[inline(always)]
    fn direct<S: Wide, const R: usize>(&mut self, s: S, row: usize) {
        let mut acc = [s.splat(0.0); R];
        accumulate(s, self.format, self.x.rows.row(0), &self.rows(row), &mut acc);
        let num_rows = self.weights.rows().saturating_sub(row);
        for (r, &acc) in acc.iter().take(num_rows).enumerate() {
            self.out.set(0, row + r, s.sum(acc));
        }
    }

    /// [`ROW_GROUP`] rows for [`TOKEN_BLOCK`] tokens, each weight widened once.
    #[inline(always)]
    fn widened<S: Wide>(&mut self, s: S, token: usize, row: usize) {
        let mut lanes = [[[0.0; LANES]; ROW_GROUP]; TOKEN_BLOCK];
        let lanes = &mut lanes[..TOKEN_BLOCK.min(self.x.num_tokens - token)];
        let rows: [Row<'_, B>; ROW_GROUP] = self.rows(row);
        let mut widened = [[[0.0; LANES]; WIDENED_VECTORS]; ROW_GROUP];
        for first in (0..self.x.rows.len).step_by(WIDENED_VECTORS) {
            let len = WIDENED_VECTORS.min(self.x.rows.len - first);
            for (row, widened) in rows.iter().zip(&mut widened) {
                widen(s, self.format, row, first, &mut widened[..len]);
            }
            let x = Rows { offset: self.x.rows.offset + first, len, ..self.x.rows };
            s.outline(Multiply { x, token, widened: &widened, lanes });
        }
        let num_rows = ROW_GROUP.min(self.weights.rows() - row);
        for (t, lanes) in lanes.iter().enumerate() {
            for (r, lanes) in lanes[..num_rows].iter().enumerate() {
                self.out.set(token + t, row + r, s.sum(s.load(lanes)));
            }
        }
    }
}

impl Out<'_> {
    #[inline(always)]
    fn set(&mut self, token: usize, row: usize, value: f32) {
        self.y[token * self.token_stride + row * self.row_stride] = value;
    }
}

/// `acc[r] += x * w[r]` over whole rows.
#[inline(always)]
fn accumulate<S: Wide, F: Format<B>, const B: usize, const R: usize>(
    s: S,
    format: F,
    x: &[Lanes],
    rows: &[Row<'_, B>; R],
    acc: &mut [S::F; R],
) {
    let num_whole = rows[0].chunks.len();
    let (x, x_tail) = x.split_at(num_whole);
    let mut scales = [s.splat(1.0); R];
    for (block, x) in x.chunks(F::VECTORS_PER_SCALE).enumerate() {
        for (scale, row) in scales.iter_mut().zip(rows) {
            *scale = format.scale(s, row.scales, block);
        }
        let first = block * F::VECTORS_PER_SCALE;
        for (i, x) in x.iter().enumerate() {
            let x = s.load(x);
            for ((acc, row), &scale) in acc.iter_mut().zip(rows).zip(&scales) {
                let w = format.widen(s, &row.chunks[first + i], scale);
                *acc = s.mul_add(x, w, *acc);
            }
        }
    }
    for x in x_tail {
        for (acc, row) in acc.iter_mut().zip(rows) {
            let scale = format.scale(s, row.scales, num_whole / F::VECTORS_PER_SCALE);
            *acc = s.mul_add(s.load(x), format.widen(s, &row.tail, scale), *acc);
        }
    }
}

/// Widens the vectors of a row from `first` on, which is where a scale begins.
#[inline(always)]
fn widen<S: Wide, F: Format<B>, const B: usize>(
    s: S,
    format: F,
    row: &Row<'_, B>,
    first: usize,
    out: &mut [Lanes],
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

/// `lanes[t][r] += x[token + t] * widened[r]`.
struct Multiply<'a> {
    x: Rows<'a>,
    token: usize,
    widened: &'a Widened,
    lanes: &'a mut [RowLanes],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(mut self, s: S) {
        let mut t = 0;
        while t < self.lanes.len() {
            t += match self.lanes.len() - t {
                1 if S::MANY_REGISTERS => self.tokens::<S, 1, 8>(s, t),
                2 if S::MANY_REGISTERS => self.tokens::<S, 2, 8>(s, t),
                _ if S::MANY_REGISTERS => self.tokens::<S, 3, 8>(s, t),
                1 => self.tokens::<S, 1, 4>(s, t),
                _ => self.tokens::<S, 2, 2>(s, t),
            };
        }
    }
}

impl Multiply<'_> {
    /// `T` tokens from `t` on and all rows of the group, `R` at a time. Returns `T`.
    #[inline(always)]
    fn tokens<S: Wide, const T: usize, const R: usize>(&mut self, s: S, t: usize) -> usize {
        let len = self.x.len.min(WIDENED_VECTORS);
        let mut x = [&self.x.row(self.token + t)[..len]; T];
        for (i, x) in x.iter_mut().enumerate() {
            *x = &self.x.row(self.token + t + i)[..len];
        }
        for row in (0..ROW_GROUP).step_by(R) {
            let mut acc = [[s.splat(0.0); R]; T];
            for (acc, lanes) in acc.iter_mut().zip(&self.lanes[t..]) {
                for (acc, lanes) in acc.iter_mut().zip(&lanes[row..row + R]) {
                    *acc = s.load(lanes);
                }
            }
            for k in 0..len {
                let mut xs = [s.splat(0.0); T];
                for (xs, x) in xs.iter_mut().zip(x) {
                    *xs = s.load(&x[k]);
                }
                for r in 0..R {
                    let w = s.load(&self.widened[row + r][k]);
                    for (acc, &x) in acc.iter_mut().zip(&xs) {
                        acc[r] = s.mul_add(x, w, acc[r]);
                    }
                }
            }
            for (acc, lanes) in acc.iter().zip(&mut self.lanes[t..]) {
                for (&acc, lanes) in acc.iter().zip(&mut lanes[row..row + R]) {
                    s.store(acc, lanes);
                }
            }
        }
        T
    }
}
