//! e4m3 with a ue8m0 scale per block.

use super::{amax, f32_to_ue8m0, pow2_ceil};
use crate::Cpu;
use crate::simd::{Kernel, Scalar, Simd, Wide, map_lanes};

/// Largest e4m3 value.
const E4M3_MAX: f32 = 448.0;
/// Smallest amax of a block: keeps scales of all-zero blocks sane.
const AMAX_FLOOR: f32 = 1e-4;

/// The value of an e4m3 code; 0x7f and 0xff are NaN.
pub fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let bits = u32::from(code & 0x7f) << 20 | u32::from(code & 0x80) << 24;
    f32::from_bits(bits) * f32::from_bits((120 + 127) << 23)
}

/// Nearest e4m3 code, ties to even, saturating at ±448; NaN becomes 0x7f.
pub fn f32_to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let rounded = round_e4m3_v(Scalar, Scalar.max(Scalar.min(x, E4M3_MAX), -E4M3_MAX));
    let bits = (rounded * f32::from_bits((127 - 120) << 23)).to_bits();
    (bits >> 24 & 0x80 | bits >> 20 & 0x7f) as u8
}

/// Quantises blocks of `block` consecutive channels (the last may be shorter) to e4m3 and back, in place:
/// what an FP8 or FP4 matmul's input goes through, and what the KV cache stores.
///
/// # Panics
///
/// If `block` is 0.
pub fn fp8_round_trip(cpu: &Cpu, x: &mut [f32], block: usize) {
    cpu.run(Fp8RoundTrip { x, block });
}

/// Quantises `x` to one e4m3 code per element and one ue8m0 scale code per `block` elements.
///
/// # Panics
///
/// If `codes` is not as long as `x`, or `scales` has not one element per block.
pub fn fp8_quantize(cpu: &Cpu, x: &[f32], block: usize, codes: &mut [u8], scales: &mut [u8]) {
    assert_eq!(codes.len(), x.len(), "length of the codes");
    assert_eq!(scales.len(), x.len().div_ceil(block), "length of the scales");
    cpu.run(Fp8Quantize { x, block, codes, scales });
}

struct Fp8RoundTrip<'a> {
    x: &'a mut [f32],
    block: usize,
}

impl Kernel for Fp8RoundTrip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for block in self.x.chunks_mut(self.block) {
            let scale = scale(s, block);
            let (scale, inverse) = (s.splat(scale), s.splat(1.0 / scale));
            map_lanes!(s, block, |x| s.mul(quantize(s, s.mul(x, inverse)), scale));
        }
    }
}

struct Fp8Quantize<'a> {
    x: &'a [f32],
    block: usize,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for Fp8Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let blocks = self.x.chunks(self.block).zip(self.codes.chunks_mut(self.block));
        for ((x, codes), scale_code) in blocks.zip(self.scales) {
            let scale = scale(s, x);
            *scale_code = f32_to_ue8m0(scale);
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = f32_to_e4m3(x * (1.0 / scale));
            }
        }
    }
}

#[inline(always)]
fn scale<S: Wide>(s: S, block: &[f32]) -> f32 {
    pow2_ceil(amax(s, block, AMAX_FLOOR) * (1.0 / E4M3_MAX))
}

/// Clamp and round; the limit is the first operand, so that NaN passes through.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: S::F) -> S::F {
    round_e4m3_v(s, s.max(s.splat(-E4M3_MAX), s.min(s.splat(E4M3_MAX), x)))
}

/// Rounds `|x| <= 448` to the e4m3 grid, ties to even.
///
/// Adding and taking away `2^20` times the power of two below `|x|` (at least the smallest normal, `2^-6`) leaves three
/// mantissa bits, rounded by the addition itself.
#[inline(always)]
fn round_e4m3_v<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.to_bits(x);
    let magnitude = s.and_i(bits, s.splat_i(i32::MAX));
    let sign = s.sub_i(bits, magnitude);
    let exponent = s.max_i(s.and_i(magnitude, s.splat_i(0x7f80_0000)), s.splat_i((127 - 6) << 23));
    let big = s.bit_cast(s.add_i(exponent, s.splat_i(20 << 23)));
    let rounded = s.sub(s.add(s.bit_cast(magnitude), big), big);
    s.bit_cast(s.add_i(s.to_bits(rounded), sign))
}
