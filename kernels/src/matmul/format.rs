//! How each weight format becomes vectors.

use crate::simd::{LANES, Wide};

/// One row: whole vectors of `B` bytes, the zero-padded rest, and the scale codes.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, const B: usize> {
    pub(super) chunks: &'a [[u8; B]],
    pub(super) tail: [u8; B],
    pub(super) scales: &'a [u8],
}

/// A weight format of `B` bytes per vector of sixteen elements.
pub(super) trait Format<const B: usize>: Copy {
    /// Vectors that share a scale.
    const VECTORS_PER_SCALE: usize;

    /// Prepares a scale for [`Format::widen`].
    fn scale<S: Wide>(self, s: S, scale: f32) -> S::F;

    /// Widens a vector, exactly.
    fn widen<S: Wide>(self, s: S, codes: &[u8; B], scale: S::F) -> S::F;
}

#[derive(Clone, Copy)]
pub(super) struct F32;
#[derive(Clone, Copy)]
pub(super) struct Bf16;
#[derive(Clone, Copy)]
pub(super) struct Fp8;
#[derive(Clone, Copy)]
pub(super) struct Fp4;

/// The power of two of a ue8m0 code, without branches. Code 255, which no checkpoint holds, becomes infinity.
#[inline(always)]
pub(super) fn scale_of(code: u8) -> f32 {
    f32::from_bits((u32::from(code) << 23).max(0x0040_0000))
}

impl<'a, const B: usize> Row<'a, B> {
    #[inline(always)]
    pub(super) fn new(bytes: &'a [u8], scales: &'a [u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<B>();
        let mut tail = [0; B];
        tail[..rest.len()].copy_from_slice(rest);
        Self { chunks, tail, scales }
    }

    /// Scale number `block` of the row; 1 for a format without scales.
    #[inline(always)]
    pub(super) fn scale_of(&self, block: usize) -> f32 {
        self.scales.get(block).map_or(1.0, |&code| scale_of(code))
    }
}

impl Format<64> for F32 {
    const VECTORS_PER_SCALE: usize = 8;

    #[inline(always)]
    fn scale<S: Wide>(self, s: S, scale: f32) -> S::F {
        s.splat(scale)
    }
    #[inline(always)]
    fn widen<S: Wide>(self, s: S, codes: &[u8; 64], _scale: S::F) -> S::F {
        s.load_f32_bytes(codes)
    }
}

impl Format<32> for Bf16 {
    const VECTORS_PER_SCALE: usize = 8;

    #[inline(always)]
    fn scale<S: Wide>(self, s: S, scale: f32) -> S::F {
        s.splat(scale)
    }
    #[inline(always)]
    fn widen<S: Wide>(self, s: S, codes: &[u8; 32], _scale: S::F) -> S::F {
        s.load_bf16(codes)
    }
}

impl Format<16> for Fp8 {
    const VECTORS_PER_SCALE: usize = super::weights::FP8_BLOCK / LANES;

    #[inline(always)]
    fn scale<S: Wide>(self, s: S, scale: f32) -> S::F {
        s.e4m3_scale(scale)
    }
    #[inline(always)]
    fn widen<S: Wide>(self, s: S, codes: &[u8; 16], scale: S::F) -> S::F {
        s.load_e4m3(codes, scale)
    }
}

impl Format<8> for Fp4 {
    const VECTORS_PER_SCALE: usize = crate::quant::FP4_BLOCK / LANES;

    #[inline(always)]
    fn scale<S: Wide>(self, s: S, scale: f32) -> S::F {
        s.splat(scale)
    }
    #[inline(always)]
    fn widen<S: Wide>(self, s: S, codes: &[u8; 8], scale: S::F) -> S::F {
        s.load_e2m1(codes, scale)
    }
}
