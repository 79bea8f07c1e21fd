//! Number formats of weights, activations and the KV cache.
//!
//! | format | bits | values |
//! |---|---|---|
//! | bf16 | 1 + 8 + 7 | the high half of an `f32` |
//! | e4m3 | 1 + 4 + 3 | ±448 at most, steps of `2^-9` near zero, no infinity, two NaN codes |
//! | e2m1 | 1 + 2 + 1 | 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives |
//! | ue8m0 | 8 | `2^(code - 127)`; 255 is NaN |
//!
//! Scales are powers of two, `2^ceil(log2(amax / largest))` of a block, so that scaling is exact and a quantised value times
//! its scale is what was stored.

mod e2m1;
mod e4m3;
#[cfg(test)]
mod tests;

use half::bf16;

use crate::Cpu;
use crate::simd::{Kernel, LANES, Simd, Wide, map_lanes};

pub use e2m1::{E2M1, e2m1_to_f32, f32_to_e2m1, fp4_quantize, fp4_round_trip};
pub use e4m3::{e4m3_to_f32, f32_to_e4m3, fp8_quantize, fp8_round_trip};

/// Channels that share one activation scale in front of FP8 and FP4 weights.
pub const ACTIVATION_BLOCK: usize = 128;
/// Channels that share one scale in the KV cache's e4m3 part.
pub const KV_BLOCK: usize = 64;
/// Channels that share one scale in FP4 weights and in the indexer.
pub const FP4_BLOCK: usize = 32;

/// The power of two that a ue8m0 code stands for.
pub fn ue8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The code of a power of two from `2^-126` to `2^127`.
pub(crate) fn f32_to_ue8m0(scale: f32) -> u8 {
    debug_assert_eq!(scale.to_bits() & 0x807f_ffff, 0, "{scale} is not a normal power of two");
    (scale.to_bits() >> 23) as u8
}

/// `2^ceil(log2 x)` for normal positive `x`, on the bits.
#[inline(always)]
pub(crate) fn pow2_ceil(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x007f_ffff) & 0x7f80_0000)
}

/// Rounds to bf16, ties to even; NaN stays NaN. In place: the activations of official numerics.
pub fn round_bf16(cpu: &Cpu, x: &mut [f32]) {
    cpu.run(RoundBf16 { x });
}

/// Rounds `x` to bf16, ties to even.
///
/// # Panics
///
/// If the lengths differ.
pub fn narrow_bf16(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "lengths of the source and of the bf16 target");
    for (out, &x) in out.iter_mut().zip(x) {
        *out = bf16::from_f32(x);
    }
}

/// Widens bf16 to `f32`, exactly.
///
/// # Panics
///
/// If the lengths differ.
pub fn widen_bf16(x: &[bf16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of the bf16 source and of the target");
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

struct RoundBf16<'a> {
    x: &'a mut [f32],
}

impl Kernel for RoundBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        map_lanes!(s, self.x, |x| round_bf16_v(s, x));
    }
}

/// Rounds a finite or infinite number to bf16. A NaN stays one, because its quiet bit is in the kept half and the increment
/// cannot carry out of a mantissa that has a zero bit; NaN with all mantissa bits set does not arise from arithmetic.
#[inline(always)]
pub(crate) fn round_bf16_v<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.to_bits(x);
    let odd = s.and_i(s.shr::<16>(bits), s.splat_i(1));
    let rounded = s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff)));
    s.bit_cast(s.and_i(rounded, s.splat_i(0xffff_0000_u32.cast_signed())))
}

/// Largest magnitude of a block, at least `floor`.
#[inline(always)]
fn amax<S: Wide>(s: S, block: &[f32], floor: f32) -> f32 {
    let mut acc = s.splat(floor);
    for x in block.chunks(LANES) {
        let bits = s.and_i(s.to_bits(s.load_any(x)), s.splat_i(i32::MAX));
        acc = s.max(s.bit_cast(bits), acc);
    }
    let mut lanes = [0.0; LANES];
    s.store(acc, &mut lanes);
    lanes.into_iter().fold(floor, |a, b| if a > b { a } else { b })
}
