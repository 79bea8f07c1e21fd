//! Sets of rows as vectors, and the products between them.

use std::borrow::Cow;

use super::{LANES, Wide};

/// A vector's worth of numbers in memory.
pub(crate) type Lanes = [f32; LANES];

/// Rows of whole vectors, padded with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [Lanes],
    /// Vectors from one row to the next.
    pub(crate) stride: usize,
    /// First vector of row 0.
    pub(crate) offset: usize,
    /// Vectors of a row.
    pub(crate) len: usize,
}

impl<'a> Rows<'a> {
    /// Rows that follow each other.
    pub(crate) fn new(data: &'a [Lanes], len: usize) -> Self {
        Self { data, stride: len, offset: 0, len }
    }

    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [Lanes] {
        let start = i * self.stride + self.offset;
        &self.data[start..start + self.len]
    }
}

/// `x` in rows of `row_len`, each padded to whole vectors; borrowed if that needs no copy, as in every real model.
pub(crate) fn padded(x: &[f32], row_len: usize) -> Cow<'_, [Lanes]> {
    let (vectors, rest) = x.as_chunks();
    if row_len.is_multiple_of(LANES) && rest.is_empty() {
        return Cow::Borrowed(vectors);
    }
    let len = row_len.div_ceil(LANES);
    let mut data = vec![[0.0; LANES]; x.len() / row_len * len];
    for (to, from) in data.chunks_mut(len).zip(x.chunks(row_len)) {
        to.as_flattened_mut()[..row_len].copy_from_slice(from);
    }
    Cow::Owned(data)
}

/// Canonical dot products of `num_a` rows with `num_b` rows, `each(i, j, a[i] · b[j])`, a register tile at a time.
#[inline(always)]
pub(crate) fn dots<S: Wide>(
    s: S,
    (a, num_a): (Rows<'_>, usize),
    (b, num_b): (Rows<'_>, usize),
    mut each: impl FnMut(usize, usize, f32),
) {
    if S::MANY_REGISTERS {
        tiles::<S, 4, 4>(s, (a, num_a), (b, num_b), &mut each);
    } else {
        tiles::<S, 2, 2>(s, (a, num_a), (b, num_b), &mut each);
    }
}

#[inline(always)]
fn tiles<S: Wide, const A: usize, const B: usize>(
    s: S,
    (a, num_a): (Rows<'_>, usize),
    (b, num_b): (Rows<'_>, usize),
    each: &mut impl FnMut(usize, usize, f32),
) {
    for i in (0..num_a).step_by(A) {
        for j in (0..num_b).step_by(B) {
            if i + A <= num_a && j + B <= num_b {
                tile::<S, A, B>(s, (a, i), (b, j), each);
                continue;
            }
            for i in i..num_a.min(i + A) {
                for j in j..num_b.min(j + B) {
                    tile::<S, 1, 1>(s, (a, i), (b, j), each);
                }
            }
        }
    }
}

#[inline(always)]
fn tile<S: Wide, const A: usize, const B: usize>(
    s: S,
    (a, first_a): (Rows<'_>, usize),
    (b, first_b): (Rows<'_>, usize),
    each: &mut impl FnMut(usize, usize, f32),
) {
    let num_vectors = a.len.min(b.len);
    let mut a_rows = [&a.row(first_a)[..num_vectors]; A];
    let mut b_rows = [&b.row(first_b)[..num_vectors]; B];
    for (i, row) in a_rows.iter_mut().enumerate() {
        *row = &a.row(first_a + i)[..num_vectors];
    }
    for (j, row) in b_rows.iter_mut().enumerate() {
        *row = &b.row(first_b + j)[..num_vectors];
    }
    let mut acc = [[s.splat(0.0); B]; A];
    for k in 0..num_vectors {
        let mut xs = [s.splat(0.0); A];
        for (xs, row) in xs.iter_mut().zip(a_rows) {
            *xs = s.load(&row[k]);
        }
        for j in 0..B {
            let y = s.load(&b_rows[j][k]);
            for i in 0..A {
                acc[i][j] = s.mul_add(xs[i], y, acc[i][j]);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (j, &acc) in acc.iter().enumerate() {
            each(first_a + i, first_b + j, s.sum(acc));
        }
    }
}

/// `out[i] += Σ_j weights[i][j] rows[j]`, fused, j rising, for every row i of `out`; `weights` has rows of `weight_stride`.
#[inline(always)]
pub(crate) fn add_weighted<S: Wide>(
    s: S,
    (weights, weight_stride): (&[f32], usize),
    (rows, num_rows): (Rows<'_>, usize),
    out: &mut [Lanes],
) {
    let weights = |i: usize| &weights[i * weight_stride..i * weight_stride + num_rows];
    let num_out = out.len() / rows.len;
    let mut i = 0;
    while i < num_out {
        let out = &mut out[i * rows.len..];
        if S::MANY_REGISTERS && i + 4 <= num_out {
            let weights = [weights(i), weights(i + 1), weights(i + 2), weights(i + 3)];
            weighted_rows::<S, 4, 4>(s, weights, rows, out);
            i += 4;
        } else if i + 2 <= num_out {
            weighted_rows::<S, 2, 2>(s, [weights(i), weights(i + 1)], rows, out);
            i += 2;
        } else {
            weighted_rows::<S, 1, 2>(s, [weights(i)], rows, out);
            i += 1;
        }
    }
}

/// `N` rows of [`add_weighted`], `V` vectors at a time.
#[inline(always)]
fn weighted_rows<S: Wide, const N: usize, const V: usize>(
    s: S,
    weights: [&[f32]; N],
    rows: Rows<'_>,
    out: &mut [Lanes],
) {
    let whole = rows.len / V * V;
    for v in (0..whole).step_by(V) {
        weighted_tile::<S, N, V>(s, weights, (rows, v), out);
    }
    for v in whole..rows.len {
        weighted_tile::<S, N, 1>(s, weights, (rows, v), out);
    }
}

#[inline(always)]
fn weighted_tile<S: Wide, const N: usize, const V: usize>(
    s: S,
    weights: [&[f32]; N],
    (rows, first): (Rows<'_>, usize),
    out: &mut [Lanes],
) {
    let num_rows = weights[0].len();
    let weights = weights.map(|weights| &weights[..num_rows]);
    let mut acc = [[s.splat(0.0); V]; N];
    for i in 0..N {
        for v in 0..V {
            acc[i][v] = s.load(&out[i * rows.len + first + v]);
        }
    }
    for j in 0..num_rows {
        let row = &rows.row(j)[first..first + V];
        for (acc, weights) in acc.iter_mut().zip(weights) {
            let weight = s.splat(weights[j]);
            for (acc, x) in acc.iter_mut().zip(row) {
                *acc = s.mul_add(weight, s.load(x), *acc);
            }
        }
    }
    for i in 0..N {
        for v in 0..V {
            s.store(acc[i][v], &mut out[i * rows.len + first + v]);
        }
    }
}
