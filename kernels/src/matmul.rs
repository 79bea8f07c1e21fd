//! Products with the weights: `y[t, n] = sum_k x[t, k] * w[n, k]`.
//!
//! Weights stay in the checkpoint's formats and are widened, exactly, on their way into registers: each time for a few tokens
//! (decode, which waits for memory), once per block of tokens for many (prefill, which waits for arithmetic). Each `y[t, n]` is the
//! canonical dot product of an input row and a widened weight row, whatever the number of tokens and threads.

mod format;
mod tile;
mod weights;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::Cpu;
use crate::simd::{Kernel, LANES, Rows, Wide, padded};
use format::{Bf16, F32, Fp4, Fp8};
use tile::Tiles;

pub use weights::{Error, WeightData, WeightMatrix};

/// Tokens `[start, end)` that share a weight matrix, as when they are sorted by expert.
#[derive(Clone, Debug)]
pub struct TokenGroup<'a> {
    /// Rows of `x` and `y`.
    pub tokens: Range<usize>,
    /// The weights, `[rows, cols]`; the same shape in all groups of a call.
    pub weights: WeightMatrix<'a>,
}

/// `y = x Wᵀ` with `x` `[num_tokens, cols]`, `weights` `[rows, cols]` and `y` `[num_tokens, rows]`.
///
/// # Panics
///
/// If the lengths of `x` and `y` do not stand for the same number of tokens.
pub fn matmul(cpu: &Cpu, x: &[f32], weights: &WeightMatrix<'_>, y: &mut [f32]) {
    matmul_block_diagonal(cpu, x, weights, 1, y);
}

/// The grouped output projection: the rows of `weights` `[num_groups * rows, cols]` are split in order into groups, and
/// group g sees only group g of the channels of `x` `[num_tokens, num_groups * cols]`. `y` is `[num_tokens, num_groups * rows]`.
///
/// # Panics
///
/// If `weights.rows()` is no multiple of `num_groups`, or the lengths of `x` and `y` do not stand for the same number of tokens.
pub fn matmul_block_diagonal(
    cpu: &Cpu,
    x: &[f32],
    weights: &WeightMatrix<'_>,
    num_groups: usize,
    y: &mut [f32],
) {
    let cols = weights.cols();
    let num_tokens = x.len() / (num_groups * cols);
    assert_eq!(weights.rows() % num_groups, 0, "rows of the weights over {num_groups} groups");
    assert_eq!(x.len(), num_tokens * num_groups * cols, "length of x");
    assert_eq!(y.len(), num_tokens * weights.rows(), "length of y");
    let (x, len) = (padded(x, cols), cols.div_ceil(LANES));
    let rows = weights.rows() / num_groups;
    for group in 0..num_groups {
        let input = Rows { data: &x, stride: num_groups * len, offset: group * len, len };
        let weights = weights.slice_rows(group * rows..(group + 1) * rows);
        let target = Target { offset: group * rows, stride: num_groups * rows };
        product(cpu, Input { rows: input, num_tokens }, &weights, target, y);
    }
}

/// One product per group of tokens: the experts of a step. `x` is `[num_tokens, cols]`, `y` `[num_tokens, rows]`; rows of `y` that
/// no group names keep their values.
///
/// # Panics
///
/// If a group's range is not within `x` and `y`, or the groups' shapes differ.
pub fn matmul_grouped(cpu: &Cpu, x: &[f32], groups: &[TokenGroup<'_>], y: &mut [f32]) {
    for TokenGroup { tokens, weights } in groups {
        let (cols, rows) = (weights.cols(), weights.rows());
        let x = &x[tokens.start * cols..tokens.end * cols];
        matmul(cpu, x, weights, &mut y[tokens.start * rows..tokens.end * rows]);
    }
}

/// Where a product goes: `y[t, offset + n]`, rows of `stride`.
#[derive(Clone, Copy)]
struct Target {
    offset: usize,
    stride: usize,
}

/// Padded input rows of some tokens.
#[derive(Clone, Copy)]
struct Input<'a> {
    rows: Rows<'a>,
    num_tokens: usize,
}

/// Rows per task, so that there are a few tasks per thread.
fn rows_per_task(cpu: &Cpu, rows: usize) -> usize {
    match cpu.num_threads() {
        1 => rows,
        threads => rows.div_ceil(4 * threads).next_multiple_of(LANES),
    }
    .max(1)
}

/// Spreads the rows of one product over the threads.
fn product(cpu: &Cpu, x: Input<'_>, weights: &WeightMatrix<'_>, target: Target, y: &mut [f32]) {
    let rows = weights.rows();
    if rows == 0 || x.num_tokens == 0 {
        return;
    }
    let task = rows_per_task(cpu, rows);
    let part = |i: usize, num: usize| weights.slice_rows(i * task..i * task + num);
    if x.num_tokens == 1 {
        let y = &mut y[target.offset..target.offset + rows];
        cpu.for_each_chunk(y, task, |i, y| {
            let out = Out { token_stride: y.len(), row_stride: 1, y };
            cpu.run(Product { x, weights: part(i, out.y.len()), out });
        });
    } else if cpu.num_threads() == 1 {
        let out = Out { token_stride: target.stride, row_stride: 1, y: &mut y[target.offset..] };
        cpu.run(Product { x, weights: weights.clone(), out });
    } else {
        // Threads own rows, and rows are not contiguous in y: they go through a transposed copy.
        let mut transposed = vec![0.0; rows * x.num_tokens];
        cpu.for_each_chunk(&mut transposed, task * x.num_tokens, |i, y| {
            let num = y.len() / x.num_tokens;
            let out = Out { token_stride: 1, row_stride: x.num_tokens, y };
            cpu.run(Product { x, weights: part(i, num), out });
        });
        cpu.for_each_chunk(y, target.stride, |token, y| {
            for (row, y) in y[target.offset..target.offset + rows].iter_mut().enumerate() {
                *y = transposed[row * x.num_tokens + token];
            }
        });
    }
}

/// `y[token * token_stride + row * row_stride]`.
pub(crate) struct Out<'a> {
    y: &'a mut [f32],
    token_stride: usize,
    row_stride: usize,
}

/// One thread's part of a product.
struct Product<'a> {
    x: Input<'a>,
    weights: WeightMatrix<'a>,
    out: Out<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Self { x, weights, out } = self;
        match weights.data() {
            WeightData::F32(_) => Tiles::<F32, 64> { x, weights, out, format: F32 }.run(s),
            WeightData::Bf16(_) => Tiles::<Bf16, 32> { x, weights, out, format: Bf16 }.run(s),
            WeightData::Fp8 { .. } => Tiles::<Fp8, 16> { x, weights, out, format: Fp8 }.run(s),
            WeightData::Fp4 { .. } => Tiles::<Fp4, 8> { x, weights, out, format: Fp4 }.run(s),
        }
    }
}
