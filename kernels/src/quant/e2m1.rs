//! e2m1 with a ue8m0 scale per block.

use super::{FP4_BLOCK, amax, f32_to_ue8m0, pow2_ceil};
use crate::Cpu;
use crate::simd::{Kernel, Simd, Wide, map_lanes};

/// The value of each e2m1 code; bit 3 is the sign.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Largest e2m1 value.
const E2M1_MAX: f32 = 6.0;
/// Smallest amax of a block: the scale is then the smallest normal number.
const AMAX_FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;

/// The value of the low four bits of `code`.
pub fn e2m1_to_f32(code: u8) -> f32 {
    E2M1[usize::from(code & 0xf)]
}

/// Nearest e2m1 code, ties to the even code, saturating at ±6. NaN has no code and becomes 6.
pub fn f32_to_e2m1(x: f32) -> u8 {
    // Halfway points; the comparison decides towards which code a tie goes.
    let m = x.abs();
    let code = if m <= 0.25 {
        0
    } else if m < 0.75 {
        1
    } else if m <= 1.25 {
        2
    } else if m < 1.75 {
        3
    } else if m <= 2.5 {
        4
    } else if m < 3.5 {
        5
    } else if m <= 5.0 {
        6
    } else {
        7
    };
    code | u8::from(x.is_sign_negative()) << 3
}

/// Quantises blocks of 32 consecutive channels (the last may be shorter) to e2m1 and back, in place: the indexer's queries
/// and keys.
pub fn fp4_round_trip(cpu: &Cpu, x: &mut [f32]) {
    cpu.run(Fp4RoundTrip { x });
}

/// Quantises `x` to e2m1 codes, two a byte (the even channel in the low nibble), and one ue8m0 scale code per 32 channels.
///
/// # Panics
///
/// If `codes` has not half the length of `x`, or `scales` not one element per block.
pub fn fp4_quantize(cpu: &Cpu, x: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    assert_eq!(codes.len() * 2, x.len(), "length of the codes");
    assert_eq!(scales.len(), x.len().div_ceil(FP4_BLOCK), "length of the scales");
    cpu.run(Fp4Quantize { x, codes, scales });
}

struct Fp4RoundTrip<'a> {
    x: &'a mut [f32],
}

impl Kernel for Fp4RoundTrip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for block in self.x.chunks_mut(FP4_BLOCK) {
            let scale = scale(s, block);
            let (scale, inverse) = (s.splat(scale), s.splat(1.0 / scale));
            map_lanes!(s, block, |x| s.mul(quantize(s, s.mul(x, inverse)), scale));
        }
    }
}

struct Fp4Quantize<'a> {
    x: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for Fp4Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let blocks = self.x.chunks(FP4_BLOCK).zip(self.codes.chunks_mut(FP4_BLOCK / 2));
        for ((x, codes), scale_code) in blocks.zip(self.scales) {
            let scale = scale(s, x);
            *scale_code = f32_to_ue8m0(scale);
            let inverse = 1.0 / scale;
            let (pairs, _) = x.as_chunks::<2>();
            for (code, [low, high]) in codes.iter_mut().zip(pairs) {
                *code = f32_to_e2m1(low * inverse) | f32_to_e2m1(high * inverse) << 4;
            }
        }
    }
}

#[inline(always)]
fn scale<S: Wide>(s: S, block: &[f32]) -> f32 {
    pow2_ceil(amax(s, block, AMAX_FLOOR) * (1.0 / E2M1_MAX))
}

/// Clamps and rounds to the e2m1 grid, ties to the even code: as for e4m3, with one mantissa bit and `1` as the smallest normal.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(s.splat(-E2M1_MAX), s.min(s.splat(E2M1_MAX), x));
    let bits = s.to_bits(x);
    let magnitude = s.and_i(bits, s.splat_i(i32::MAX));
    let sign = s.sub_i(bits, magnitude);
    let exponent = s.max_i(s.and_i(magnitude, s.splat_i(0x7f80_0000)), s.splat_i(127 << 23));
    let big = s.bit_cast(s.add_i(exponent, s.splat_i(22 << 23)));
    let rounded = s.sub(s.add(s.bit_cast(magnitude), big), big);
    s.bit_cast(s.add_i(s.to_bits(rounded), sign))
}
