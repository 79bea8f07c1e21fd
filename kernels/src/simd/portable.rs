//! The vector without intrinsics: what every other one is compared with, and what runs where there is no other.

use super::{Kernel, LANES, Simd, Wide};
use crate::quant::e2m1_to_f32;

/// One lane: lets [`crate::math`] serve scalars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

/// Sixteen lanes as an array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Simd for Scalar {
    type F = f32;
    type I = i32;

    #[inline(always)]
    fn splat(self, value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn select_lt(self, a: f32, b: f32, yes: f32, no: f32) -> f32 {
        if a < b { yes } else { no }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> i32 {
        value
    }
    #[inline(always)]
    fn to_bits(self, a: f32) -> i32 {
        a.to_bits().cast_signed()
    }
    #[inline(always)]
    fn bit_cast(self, a: i32) -> f32 {
        f32::from_bits(a.cast_unsigned())
    }
    #[inline(always)]
    fn add_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn sub_i(self, a: i32, b: i32) -> i32 {
        a.wrapping_sub(b)
    }
    #[inline(always)]
    fn and_i(self, a: i32, b: i32) -> i32 {
        a & b
    }
    #[inline(always)]
    fn max_i(self, a: i32, b: i32) -> i32 {
        a.max(b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: i32) -> i32 {
        a << N
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: i32) -> i32 {
        a >> N
    }
    #[inline(always)]
    fn to_float(self, a: i32) -> f32 {
        a as f32
    }
}

// Plain loops, and calls where sixteen fused multiply-adds would be spelled out: this path is for being right anywhere, and
// unrolled it would take most of the crate's compile time.

#[inline]
fn map<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

#[inline]
fn zip<A: Copy, B: Copy + Default>(
    a: [A; LANES],
    b: [A; LANES],
    f: impl Fn(A, A) -> B,
) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(never)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline]
    fn sqrt(self, a: Self::F) -> Self::F {
        map(a, f32::sqrt)
    }
    #[inline]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| Scalar.min(a, b))
    }
    #[inline]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| Scalar.max(a, b))
    }
    #[inline]
    fn select_lt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        let mut out = no;
        for i in 0..LANES {
            out[i] = Scalar.select_lt(a[i], b[i], yes[i], no[i]);
        }
        out
    }
    #[inline]
    fn splat_i(self, value: i32) -> Self::I {
        [value; LANES]
    }
    #[inline]
    fn to_bits(self, a: Self::F) -> Self::I {
        map(a, |a| Scalar.to_bits(a))
    }
    #[inline]
    fn bit_cast(self, a: Self::I) -> Self::F {
        map(a, |a| Scalar.bit_cast(a))
    }
    #[inline]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline]
    fn shl<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a << N)
    }
    #[inline]
    fn shr<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |a| a >> N)
    }
    #[inline]
    fn to_float(self, a: Self::I) -> Self::F {
        map(a, |a| a as f32)
    }
}

/// The value of a code; the NaN codes are 480, as in the vector versions.
#[inline]
fn e4m3(code: u8) -> f32 {
    let code = u32::from(code);
    let bits = (code & 0x7f) << 20 | (code & 0x80) << 24;
    f32::from_bits(bits) * f32::from_bits((120 + 127) << 23)
}

impl Wide for Portable {
    const MANY_REGISTERS: bool = false;

    #[inline(never)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline]
    fn swap<const N: usize>(self, a: Self::F) -> Self::F {
        let mut out = a;
        for i in 0..LANES {
            out[i] = a[i ^ N];
        }
        out
    }
    #[inline]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline]
    fn store(self, value: Self::F, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> Self::F {
        let (words, _) = from.as_chunks::<4>();
        let mut out = [0.0; LANES];
        for (out, word) in out.iter_mut().zip(words) {
            *out = f32::from_le_bytes(*word);
        }
        out
    }
    #[inline]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> Self::F {
        let (words, _) = from.as_chunks::<2>();
        let mut out = [0.0; LANES];
        for (out, word) in out.iter_mut().zip(words) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
        }
        out
    }
    #[inline]
    fn load_e4m3(self, from: &[u8; LANES], scale: Self::F) -> Self::F {
        let mut out = scale;
        for (out, &code) in out.iter_mut().zip(from) {
            *out *= e4m3(code);
        }
        out
    }
    #[inline]
    fn e4m3_scale(self, scale: f32) -> Self::F {
        [scale; LANES]
    }
    #[inline]
    fn load_e2m1(self, from: &[u8; LANES / 2], scale: Self::F) -> Self::F {
        let mut out = [0.0; LANES];
        let (pairs, _) = out.as_chunks_mut::<2>();
        for (pair, &code) in pairs.iter_mut().zip(from) {
            *pair = [e2m1_to_f32(code), e2m1_to_f32(code >> 4)];
        }
        self.mul(out, scale)
    }
    #[inline]
    fn sum(self, a: Self::F) -> f32 {
        let mut lanes = a;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Sign, and the seven bits of an e4m3 code moved to where an f16 has the low four of its exponent and three of its mantissa.
#[cfg(target_arch = "x86_64")]
pub(super) const E4M3_F16_MASK: i16 = 0xbf80_u16.cast_signed();

/// `2^8`: the difference of the exponent biases of f16 and e4m3.
#[cfg(target_arch = "x86_64")]
pub(super) const E4M3_F16_SHIFT: f32 = 256.0;
