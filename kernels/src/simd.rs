//! The vector that kernels are written over.
//!
//! A kernel is a [`Kernel`]: a struct of its arguments with one method, generic over the vector. `Isa::run` calls it inside a
//! function compiled for the instruction set, into which everything is inlined. [`Simd`] is the arithmetic that scalars
//! share with vectors, so that [`crate::math`] is written once; [`Wide`] adds what only sixteen lanes have.

mod portable;
mod rows;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::{Portable, Scalar};
pub(crate) use rows::{Lanes, Rows, add_weighted, dots, padded};

/// Lanes of the canonical reduction.
pub(crate) const LANES: usize = 16;

/// A computation that runs on any instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Runs it. Implementations are `#[inline(always)]`, so that the body is compiled for the caller's instruction set.
    fn run<S: Wide>(self, s: S) -> Self::Output;
}

/// Correctly rounded arithmetic on a vector of `f32` and one of `i32`, both of the same number of lanes.
///
/// A value of the type is the proof that the CPU has the instructions.
pub(crate) trait Simd: Copy {
    /// Vector of `f32`.
    type F: Copy;
    /// Vector of `i32`.
    type I: Copy;

    fn splat(self, value: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: the second operand if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: the second operand if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { yes } else { no }`.
    fn select_lt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;

    fn splat_i(self, value: i32) -> Self::I;
    fn to_bits(self, a: Self::F) -> Self::I;
    fn bit_cast(self, a: Self::I) -> Self::F;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic shift.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Nearest `f32`.
    fn to_float(self, a: Self::I) -> Self::F;
}

/// Sixteen lanes: memory access, widening of weights, and reductions.
pub(crate) trait Wide: Simd {
    /// Whether there are registers for a big tile of accumulators (32 vectors of 16 lanes; else 8).
    const MANY_REGISTERS: bool;

    /// Runs a kernel as a function of its own, compiled for the same instructions: keeps shared bodies from being repeated in
    /// every caller.
    fn outline<K: Kernel>(self, kernel: K) -> K::Output;

    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, value: Self::F, to: &mut [f32; LANES]);
    /// Little-endian `f32` bytes.
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F;
    /// Little-endian bf16 bytes.
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::F;
    /// e4m3 codes times a power of two that [`Wide::e4m3_scale`] prepared. The NaN codes widen to 480.
    fn load_e4m3(self, from: &[u8; LANES], scale: Self::F) -> Self::F;
    /// Prepares `scale` for [`Wide::load_e4m3`].
    fn e4m3_scale(self, scale: f32) -> Self::F;
    /// e2m1 codes, low nibble first, times a scale.
    fn load_e2m1(self, from: &[u8; LANES / 2], scale: Self::F) -> Self::F;
    /// Sum of the lanes, as the canonical tree.
    fn sum(self, a: Self::F) -> f32;

    /// `a` with lanes `i` and `i ^ N` exchanged, for `N` of 1, 2, 4 or 8.
    fn swap<const N: usize>(self, a: Self::F) -> Self::F;

    /// Loads a slice of at most a vector; the lanes beyond it are 0.
    #[inline(always)]
    fn load_any(self, from: &[f32]) -> Self::F {
        match from.try_into() {
            Ok(whole) => self.load(whole),
            Err(_) => self.load_partial(from, 0.0),
        }
    }

    /// Stores the first lanes into a slice of at most a vector.
    #[inline(always)]
    fn store_any(self, value: Self::F, to: &mut [f32]) {
        match to.try_into() {
            Ok(whole) => self.store(value, whole),
            Err(_) => self.store_partial(value, to),
        }
    }

    /// Loads the first lanes from a slice shorter than a vector; the others are `fill`.
    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> Self::F {
        let mut padded = [fill; LANES];
        padded[..from.len()].copy_from_slice(from);
        self.load(&padded)
    }

    /// Stores the first lanes into a slice shorter than a vector.
    #[inline(always)]
    fn store_partial(self, value: Self::F, to: &mut [f32]) {
        let mut padded = [0.0; LANES];
        self.store(value, &mut padded);
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// Replaces every vector `x` of a slice by a value computed from it; the tail is padded with zeros.
///
/// A macro, because a closure is a function of its own, without the caller's instruction set, and a long one is not inlined.
macro_rules! map_lanes {
    ($s:expr, $data:expr, |$x:ident| $value:expr) => {
        for lanes in $data.chunks_mut($crate::simd::LANES) {
            let $x = $s.load_any(lanes);
            $s.store_any($value, lanes);
        }
    };
}
pub(crate) use map_lanes;

/// Canonical dot product of two slices of one length.
#[inline(always)]
pub(crate) fn dot<S: Wide>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut acc = s.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        acc = s.mul_add(s.load(a), s.load(b), acc);
    }
    if !a_tail.is_empty() {
        acc = s.mul_add(s.load_partial(a_tail, 0.0), s.load_partial(b_tail, 0.0), acc);
    }
    s.sum(acc)
}

/// Canonical sum.
#[inline(always)]
pub(crate) fn sum<S: Wide>(s: S, a: &[f32]) -> f32 {
    let (chunks, tail) = a.as_chunks::<LANES>();
    let mut acc = s.splat(0.0);
    for chunk in chunks {
        acc = s.add(acc, s.load(chunk));
    }
    if !tail.is_empty() {
        acc = s.add(acc, s.load_partial(tail, 0.0));
    }
    s.sum(acc)
}

/// `acc[i] += a * x[i]`, fused.
#[inline(always)]
pub(crate) fn axpy<S: Wide>(s: S, a: f32, x: &[f32], acc: &mut [f32]) {
    let a = s.splat(a);
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (acc, acc_tail) = acc.as_chunks_mut::<LANES>();
    for (x, acc) in x.iter().zip(acc) {
        s.store(s.mul_add(a, s.load(x), s.load(acc)), acc);
    }
    if !x_tail.is_empty() {
        let value = s.mul_add(a, s.load_partial(x_tail, 0.0), s.load_partial(acc_tail, 0.0));
        s.store_partial(value, acc_tail);
    }
}

/// Largest value; NaN does not count, and `-inf` stands for none.
#[inline(always)]
pub(crate) fn max<S: Wide>(s: S, a: &[f32]) -> f32 {
    let (chunks, tail) = a.as_chunks::<LANES>();
    let mut acc = s.splat(f32::NEG_INFINITY);
    for chunk in chunks {
        acc = s.max(s.load(chunk), acc);
    }
    if !tail.is_empty() {
        acc = s.max(s.load_partial(tail, f32::NEG_INFINITY), acc);
    }
    let mut lanes = [0.0; LANES];
    s.store(acc, &mut lanes);
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
}
