//! The vector as one 512-bit register.

use std::arch::x86_64::*;

use super::portable::{E4M3_F16_MASK, E4M3_F16_SHIFT};
use super::{Kernel, LANES, Simd, Wide};

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

/// Calls an intrinsic.
macro_rules! call {
    ($($intrinsic:tt)*) => {{
        // SAFETY: the caller holds an `Avx512`, which only `detect` makes, after finding the instructions.
        unsafe { $($intrinsic)* }
    }};
}

impl Avx512 {
    /// The proof, if it is true.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        found.then_some(Self(()))
    }

    /// Runs a kernel compiled for these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        #[inline(never)]
        fn compiled<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        call!(compiled(self, kernel))
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        call!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        call!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        call!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        call!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        let less = call!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b));
        call!(_mm512_mask_blend_ps(less, no, yes))
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> __m512i {
        call!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn to_bits(self, a: __m512) -> __m512i {
        call!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn bit_cast(self, a: __m512i) -> __m512 {
        call!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        call!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        call!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        call!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        call!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        call!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        call!(_mm512_srai_epi32::<N>(a))
    }
    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        call!(_mm512_cvtepi32_ps(a))
    }
}

impl Wide for Avx512 {
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn swap<const N: usize>(self, a: __m512) -> __m512 {
        const {
            assert!(matches!(N, 1 | 2 | 4 | 8), "lanes are exchanged within one vector");
        }
        match N {
            1 => call!(_mm512_permute_ps::<0b10_11_00_01>(a)),
            2 => call!(_mm512_permute_ps::<0b01_00_11_10>(a)),
            4 => call!(_mm512_shuffle_f32x4::<0b10_11_00_01>(a, a)),
            _ => call!(_mm512_shuffle_f32x4::<0b01_00_11_10>(a, a)),
        }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: the array is 64 readable bytes, and the CPU has the instruction.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        // SAFETY: the array is 64 writable bytes, and the CPU has the instruction.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: the array is 64 readable bytes, the load has no alignment, and the CPU has the instruction.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * LANES]) -> __m512 {
        // SAFETY: the array is 32 readable bytes, the load has no alignment, and the CPU has the instruction.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        let words = call!(_mm512_cvtepu16_epi32(halves));
        self.bit_cast(self.shl::<16>(words))
    }
    #[inline(always)]
    fn load_e4m3(self, from: &[u8; LANES], scale: __m512) -> __m512 {
        // SAFETY: the array is 16 readable bytes, the load has no alignment, and the CPU has the instruction.
        let codes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        // Sign extension fills the bits above the seven low ones with the sign; one of them stays. The rest is an f16 of
        // 2^-8 the value, and widening an f16 is exact and fast for subnormal numbers too.
        let words = call!(_mm256_cvtepi8_epi16(codes));
        let words = call!(_mm256_slli_epi16::<7>(words));
        let mask = call!(_mm256_set1_epi16(E4M3_F16_MASK));
        let halves = call!(_mm256_and_si256(words, mask));
        self.mul(call!(_mm512_cvtph_ps(halves)), scale)
    }
    #[inline(always)]
    fn e4m3_scale(self, scale: f32) -> __m512 {
        self.splat(scale * E4M3_F16_SHIFT)
    }
    #[inline(always)]
    fn load_e2m1(self, from: &[u8; LANES / 2], scale: __m512) -> __m512 {
        // SAFETY: the array is 8 readable bytes, the load has no alignment, and the CPU has the instruction.
        let codes = unsafe { _mm_loadl_epi64(from.as_ptr().cast()) };
        // Lanes 0-7 take the first four bytes, lanes 8-15 the others; each shifts its nibble down. The table lookup
        // reads the four low bits only.
        let spread = call!(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0));
        let codes = call!(_mm512_castsi128_si512(codes));
        let words = call!(_mm512_permutexvar_epi32(spread, codes));
        let shifts =
            call!(_mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0));
        let nibbles = call!(_mm512_srlv_epi32(words, shifts));
        let table = self.load(&crate::quant::E2M1);
        self.mul(call!(_mm512_permutexvar_ps(nibbles, table)), scale)
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        let (low, high) = (call!(_mm512_castps512_ps256(a)), call!(_mm512_extractf32x8_ps::<1>(a)));
        let eight = call!(_mm256_add_ps(low, high));
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
