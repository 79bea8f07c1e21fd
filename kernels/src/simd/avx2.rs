//! The vector as two 256-bit registers, the first eight lanes and the others.

use std::arch::x86_64::*;

use super::portable::{E4M3_F16_MASK, E4M3_F16_SHIFT};
use super::{Kernel, LANES, Simd, Wide};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// Sixteen `f32`.
#[derive(Clone, Copy)]
pub(crate) struct F(__m256, __m256);

/// Sixteen `i32`.
#[derive(Clone, Copy)]
pub(crate) struct I(__m256i, __m256i);

/// Calls an intrinsic.
macro_rules! call {
    ($($intrinsic:tt)*) => {{
        // SAFETY: the caller holds an `Avx2`, which only `detect` makes, after finding the instructions.
        unsafe { $($intrinsic)* }
    }};
}

impl Avx2 {
    /// The proof, if it is true.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    /// Runs a kernel compiled for these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        call!(compiled(self, kernel))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        let half = call!(_mm256_set1_ps(value));
        F(half, half)
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        F(call!(_mm256_add_ps(a.0, b.0)), call!(_mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        F(call!(_mm256_sub_ps(a.0, b.0)), call!(_mm256_sub_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        F(call!(_mm256_mul_ps(a.0, b.0)), call!(_mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        F(call!(_mm256_div_ps(a.0, b.0)), call!(_mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul_add(self, a: F, b: F, c: F) -> F {
        F(call!(_mm256_fmadd_ps(a.0, b.0, c.0)), call!(_mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        F(call!(_mm256_sqrt_ps(a.0)), call!(_mm256_sqrt_ps(a.1)))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        F(call!(_mm256_min_ps(a.0, b.0)), call!(_mm256_min_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        F(call!(_mm256_max_ps(a.0, b.0)), call!(_mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        let less = F(
            call!(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
            call!(_mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
        );
        F(
            call!(_mm256_blendv_ps(no.0, yes.0, less.0)),
            call!(_mm256_blendv_ps(no.1, yes.1, less.1)),
        )
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> I {
        let half = call!(_mm256_set1_epi32(value));
        I(half, half)
    }
    #[inline(always)]
    fn to_bits(self, a: F) -> I {
        I(call!(_mm256_castps_si256(a.0)), call!(_mm256_castps_si256(a.1)))
    }
    #[inline(always)]
    fn bit_cast(self, a: I) -> F {
        F(call!(_mm256_castsi256_ps(a.0)), call!(_mm256_castsi256_ps(a.1)))
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        I(call!(_mm256_add_epi32(a.0, b.0)), call!(_mm256_add_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        I(call!(_mm256_sub_epi32(a.0, b.0)), call!(_mm256_sub_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        I(call!(_mm256_and_si256(a.0, b.0)), call!(_mm256_and_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        I(call!(_mm256_max_epi32(a.0, b.0)), call!(_mm256_max_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I) -> I {
        // The intrinsics want a signed constant; a count in a register costs no more.
        let count = call!(_mm_cvtsi32_si128(N.cast_signed()));
        I(call!(_mm256_sll_epi32(a.0, count)), call!(_mm256_sll_epi32(a.1, count)))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I) -> I {
        let count = call!(_mm_cvtsi32_si128(N.cast_signed()));
        I(call!(_mm256_sra_epi32(a.0, count)), call!(_mm256_sra_epi32(a.1, count)))
    }
    #[inline(always)]
    fn to_float(self, a: I) -> F {
        F(call!(_mm256_cvtepi32_ps(a.0)), call!(_mm256_cvtepi32_ps(a.1)))
    }
}

/// The halves of an array.
#[inline(always)]
fn halves<const N: usize, const HALF: usize>(from: &[u8; N]) -> (&[u8; HALF], &[u8; HALF]) {
    const { assert!(N == 2 * HALF, "two halves make a whole") };
    let (halves, _) = from.as_chunks::<HALF>();
    (&halves[0], &halves[1])
}

impl Avx2 {
    #[inline(always)]
    fn load_8(self, from: &[u8; 32]) -> __m256 {
        // SAFETY: the array is 32 readable bytes, the load has no alignment, and the CPU has the instruction.
        unsafe { _mm256_loadu_ps(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_16_bytes(self, from: &[u8; 16]) -> __m128i {
        // SAFETY: the array is 16 readable bytes, the load has no alignment, and the CPU has the instruction.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    /// Eight e4m3 codes, as 2^-8 their values.
    #[inline(always)]
    fn e4m3_8(self, codes: &[u8; 8]) -> __m256 {
        // SAFETY: the array is 8 readable bytes, the load has no alignment, and the CPU has the instruction.
        let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
        // Sign extension fills the bits above the seven low ones with the sign; one of them stays. The rest is an f16, and
        // widening an f16 is exact and fast for subnormal numbers too.
        let words = call!(_mm_cvtepi8_epi16(codes));
        let words = call!(_mm_slli_epi16::<7>(words));
        let mask = call!(_mm_set1_epi16(E4M3_F16_MASK));
        let halves = call!(_mm_and_si128(words, mask));
        call!(_mm256_cvtph_ps(halves))
    }

    /// Eight e2m1 codes, by a table of the eight magnitudes.
    #[inline(always)]
    fn e2m1_8(self, codes: [u8; 4], table: __m256) -> __m256 {
        let words = call!(_mm256_set1_epi32(i32::from_le_bytes(codes)));
        let shifts = call!(_mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
        let nibbles = call!(_mm256_srlv_epi32(words, shifts));
        // The lookup reads the three low bits only; the fourth is the sign.
        let magnitudes = call!(_mm256_permutevar8x32_ps(table, nibbles));
        let shifted = call!(_mm256_slli_epi32::<28>(nibbles));
        let sign_bits = call!(_mm256_set1_epi32(i32::MIN));
        let signs = call!(_mm256_and_si256(shifted, sign_bits));
        let signs = call!(_mm256_castsi256_ps(signs));
        call!(_mm256_xor_ps(magnitudes, signs))
    }
}

impl Wide for Avx2 {
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn swap<const N: usize>(self, a: F) -> F {
        const {
            assert!(matches!(N, 1 | 2 | 4 | 8), "lanes are exchanged within one vector");
        }
        match N {
            1 => F(
                call!(_mm256_permute_ps::<0b10_11_00_01>(a.0)),
                call!(_mm256_permute_ps::<0b10_11_00_01>(a.1)),
            ),
            2 => F(
                call!(_mm256_permute_ps::<0b01_00_11_10>(a.0)),
                call!(_mm256_permute_ps::<0b01_00_11_10>(a.1)),
            ),
            4 => F(
                call!(_mm256_permute2f128_ps::<1>(a.0, a.0)),
                call!(_mm256_permute2f128_ps::<1>(a.1, a.1)),
            ),
            _ => F(a.1, a.0),
        }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        let (halves, _) = from.as_chunks::<8>();
        // SAFETY: the array is 32 readable bytes, and the CPU has the instruction.
        let low = unsafe { _mm256_loadu_ps(halves[0].as_ptr()) };
        // SAFETY: as above.
        let high = unsafe { _mm256_loadu_ps(halves[1].as_ptr()) };
        F(low, high)
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        let (halves, _) = to.as_chunks_mut::<8>();
        // SAFETY: the array is 32 writable bytes, and the CPU has the instruction.
        unsafe { _mm256_storeu_ps(halves[0].as_mut_ptr(), value.0) };
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(halves[1].as_mut_ptr(), value.1) };
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> F {
        let (low, high) = halves(from);
        F(self.load_8(low), self.load_8(high))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> F {
        let (low, high) = halves(from);
        let (low, high) = (self.load_16_bytes(low), self.load_16_bytes(high));
        let words = I(call!(_mm256_cvtepu16_epi32(low)), call!(_mm256_cvtepu16_epi32(high)));
        self.bit_cast(self.shl::<16>(words))
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES], scale: F) -> F {
        let (low, high) = halves(from);
        self.mul(F(self.e4m3_8(low), self.e4m3_8(high)), scale)
    }
    #[inline(always)]
    fn e4m3_scale(self, scale: f32) -> F {
        self.splat(scale * E4M3_F16_SHIFT)
    }
    #[inline(always)]
    fn load_e2m1(self, from: &[u8; LANES / 2], scale: F) -> F {
        let (low, high) = halves(from);
        let table = self.load(&crate::quant::E2M1).0;
        self.mul(F(self.e2m1_8(*low, table), self.e2m1_8(*high, table)), scale)
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        let eight = call!(_mm256_add_ps(a.0, a.1));
        let (low, high) =
            (call!(_mm256_castps256_ps128(eight)), call!(_mm256_extractf128_ps::<1>(eight)));
        let four = call!(_mm_add_ps(low, high));
        let moved = call!(_mm_movehl_ps(four, four));
        let two = call!(_mm_add_ps(four, moved));
        let moved = call!(_mm_movehdup_ps(two));
        let one = call!(_mm_add_ss(two, moved));
        call!(_mm_cvtss_f32(one))
    }
}
