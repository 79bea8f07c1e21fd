//! Register tiles: a few tokens times a few rows, each an accumulator of sixteen lanes.

use std::ops::Range;

use super::format::{Format, Row, scale_of};
use super::{Input, Out, WeightMatrix};
use crate::simd::{Kernel, LANES, Lanes, Rows, Wide};

/// Rows that are worked on together.
const ROW_GROUP: usize = 8;
/// Vectors of a row that are widened at a time: with [`ROW_GROUP`], 16 KiB, half of a small level-1 cache.
const WIDENED_VECTORS: usize = 32;
/// Tokens that share a widening.
const TOKEN_BLOCK: usize = 48;

/// Scales of a row that are decoded at a time.
const SCALE_RUN: usize = 64;

/// The accumulators of one row, for each token of a block.
type RowLanes = [Lanes; TOKEN_BLOCK];
/// Part of [`ROW_GROUP`] rows, vector by vector: rows apart by a power of two would compete for the same cache sets.
type Widened = [[Lanes; ROW_GROUP]; WIDENED_VECTORS];

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
            match self.x.num_tokens {
                1 if S::MANY_REGISTERS => self.direct::<S, 1, 8>(s, row),
                2 if S::MANY_REGISTERS => self.direct::<S, 2, 8>(s, row),
                3 | 4 if S::MANY_REGISTERS => self.direct::<S, 4, 4>(s, row),
                1 => self.direct::<S, 1, 4>(s, row),
                2 => self.direct::<S, 2, 2>(s, row),
                num_tokens => {
                    for token in (0..num_tokens).step_by(TOKEN_BLOCK) {
                        self.widened(s, token, row);
                    }
                }
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

    /// [`ROW_GROUP`] rows, `R` at a time, for up to `T` tokens, each weight widened in registers. Tokens past the end repeat the
    /// last one, and their results are dropped.
    #[inline(always)]
    fn direct<S: Wide, const T: usize, const R: usize>(&mut self, s: S, first_row: usize) {
        let mut x = [self.x.rows.row(0); T];
        for (t, x) in x.iter_mut().enumerate() {
            *x = self.x.rows.row(t.min(self.x.num_tokens - 1));
        }
        let end = self.weights.rows().min(first_row + ROW_GROUP);
        for row in (first_row..end).step_by(R) {
            let mut acc = [[s.splat(0.0); R]; T];
            accumulate(s, self.format, x, &self.rows(row), &mut acc);
            for (t, acc) in acc.iter().take(self.x.num_tokens).enumerate() {
                for (r, &acc) in acc.iter().take(end - row).enumerate() {
                    self.out.set(t, row + r, s.sum(acc));
                }
            }
        }
    }

    /// [`ROW_GROUP`] rows for [`TOKEN_BLOCK`] tokens, each weight widened once.
    #[inline(always)]
    fn widened<S: Wide>(&mut self, s: S, token: usize, row: usize) {
        let num_tokens = TOKEN_BLOCK.min(self.x.num_tokens - token);
        let rows: [Row<'_, B>; ROW_GROUP] = self.rows(row);
        let mut lanes = [[[0.0; LANES]; TOKEN_BLOCK]; ROW_GROUP];
        let mut widened = [[[0.0; LANES]; ROW_GROUP]; WIDENED_VECTORS];
        for first in (0..self.x.rows.len).step_by(WIDENED_VECTORS) {
            let len = WIDENED_VECTORS.min(self.x.rows.len - first);
            widen(s, self.format, &rows, first, &mut widened[..len]);
            let x = Rows { offset: self.x.rows.offset + first, len, ..self.x.rows };
            let tokens = token..token + num_tokens;
            s.outline(Multiply { x, tokens, widened: &widened, lanes: &mut lanes });
        }
        let num_rows = ROW_GROUP.min(self.weights.rows() - row);
        for (r, lanes) in lanes[..num_rows].iter().enumerate() {
            for (t, lanes) in lanes[..num_tokens].iter().enumerate() {
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

/// `acc[t][r] += x[t] * w[r]` over whole rows.
#[inline(always)]
fn accumulate<S: Wide, F: Format<B>, const B: usize, const T: usize, const R: usize>(
    s: S,
    format: F,
    x: [&[Lanes]; T],
    rows: &[Row<'_, B>; R],
    acc: &mut [[S::F; R]; T],
) {
    let num_whole = rows[0].chunks.len();
    let mut chunks = [&rows[0].chunks[..num_whole]; R];
    for (chunks, row) in chunks.iter_mut().zip(rows) {
        *chunks = &row.chunks[..num_whole];
    }
    let run_vectors = SCALE_RUN * F::VECTORS_PER_SCALE;
    for run in (0..num_whole).step_by(run_vectors) {
        let mut scales = [[0.0; SCALE_RUN]; R];
        for (scales, row) in scales.iter_mut().zip(rows) {
            let codes = row.scales.get(run / F::VECTORS_PER_SCALE..).unwrap_or(&[]);
            for (scale, &code) in scales.iter_mut().zip(codes) {
                *scale = scale_of(code);
            }
        }
        for k in run..num_whole.min(run + run_vectors) {
            let mut xs = [s.splat(0.0); T];
            for (xs, x) in xs.iter_mut().zip(x) {
                *xs = s.load(&x[k]);
            }
            for r in 0..R {
                let scale = format.scale(s, scales[r][(k - run) / F::VECTORS_PER_SCALE]);
                let w = format.widen(s, &chunks[r][k], scale);
                for (acc, &x) in acc.iter_mut().zip(&xs) {
                    acc[r] = s.mul_add(x, w, acc[r]);
                }
            }
        }
    }
    if num_whole < x[0].len() {
        for r in 0..R {
            let scale = format.scale(s, rows[r].scale_of(num_whole / F::VECTORS_PER_SCALE));
            let w = format.widen(s, &rows[r].tail, scale);
            for (acc, x) in acc.iter_mut().zip(x) {
                acc[r] = s.mul_add(s.load(&x[num_whole]), w, acc[r]);
            }
        }
    }
}

/// Widens the vectors of the rows from `first` on, which is where a scale begins. All rows advance together, so that each is
/// one long stream to the memory prefetcher.
#[inline(always)]
fn widen<S: Wide, F: Format<B>, const B: usize>(
    s: S,
    format: F,
    rows: &[Row<'_, B>; ROW_GROUP],
    first: usize,
    out: &mut [[Lanes; ROW_GROUP]],
) {
    for (j, out) in out.chunks_mut(F::VECTORS_PER_SCALE).enumerate() {
        let first = first + j * F::VECTORS_PER_SCALE;
        let mut scales = [s.splat(1.0); ROW_GROUP];
        for (scale, row) in scales.iter_mut().zip(rows) {
            *scale = format.scale(s, row.scale_of(first / F::VECTORS_PER_SCALE));
        }
        for (i, out) in out.iter_mut().enumerate() {
            for ((row, &scale), out) in rows.iter().zip(&scales).zip(out) {
                let codes = row.chunks.get(first + i).unwrap_or(&row.tail);
                s.store(format.widen(s, codes, scale), out);
            }
        }
    }
}

/// `lanes[r][t] += x[tokens[t]] * widened[r]`.
struct Multiply<'a> {
    x: Rows<'a>,
    tokens: Range<usize>,
    widened: &'a Widened,
    lanes: &'a mut [RowLanes; ROW_GROUP],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(mut self, s: S) {
        let mut t = 0;
        while t < self.tokens.len() {
            t += match self.tokens.len() - t {
                1 if S::MANY_REGISTERS => self.tile::<S, 1, 8>(s, t),
                2 if S::MANY_REGISTERS => self.tile::<S, 2, 8>(s, t),
                _ if S::MANY_REGISTERS => self.tile::<S, 3, 8>(s, t),
                1 => self.tile::<S, 1, 4>(s, t),
                _ => self.tile::<S, 2, 2>(s, t),
            };
        }
    }
}

impl Multiply<'_> {
    /// `T` tokens from `t` on and all rows of the group, `R` at a time. Returns `T`.
    #[inline(always)]
    fn tile<S: Wide, const T: usize, const R: usize>(&mut self, s: S, t: usize) -> usize {
        let len = self.x.len.min(WIDENED_VECTORS);
        let mut x = [&self.x.row(self.tokens.start + t)[..len]; T];
        for (i, x) in x.iter_mut().enumerate() {
            *x = &self.x.row(self.tokens.start + t + i)[..len];
        }
        for row in (0..ROW_GROUP).step_by(R) {
            let mut acc = [[s.splat(0.0); R]; T];
            for (i, acc) in acc.iter_mut().enumerate() {
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(&self.lanes[row + r][t + i]);
                }
            }
            for (k, widened) in self.widened[..len].iter().enumerate() {
                let mut xs = [s.splat(0.0); T];
                for (xs, x) in xs.iter_mut().zip(x) {
                    *xs = s.load(&x[k]);
                }
                for (r, w) in widened[row..row + R].iter().enumerate() {
                    let w = s.load(w);
                    for (acc, &x) in acc.iter_mut().zip(&xs) {
                        acc[r] = s.mul_add(x, w, acc[r]);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (r, &acc) in acc.iter().enumerate() {
                    s.store(acc, &mut self.lanes[row + r][t + i]);
                }
            }
        }
        T
    }
}
