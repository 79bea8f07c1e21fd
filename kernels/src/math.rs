//! Elementary functions whose bits are the same on every machine.
//!
//! Each is a polynomial of fused multiply-adds, written once for scalars and vectors. Errors are measured in `tests.rs` over
//! the range in which the model uses them; the platform's `exp` and `ln` differ from machine to machine and are never called.

mod trig;
#[cfg(test)]
mod tests;

pub(crate) use trig::sin_cos;

use crate::simd::{Scalar, Simd};

/// `e^x`. Overflows to infinity above 88.73, underflows through denormals to zero below -104.
pub fn exp(x: f32) -> f32 {
    exp_v(Scalar, x)
}

/// `ln x` for normal positive `x`.
pub fn ln(x: f32) -> f32 {
    ln_v(Scalar, x)
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    sigmoid_v(Scalar, x)
}

/// `ln(1 + e^x)`; `x` itself above 20.
pub fn softplus(x: f32) -> f32 {
    softplus_v(Scalar, x)
}

/// Adding this to a number below `2^22` in magnitude rounds it to an integer, which is then in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn pow2<S: Simd>(s: S, n: S::I) -> S::F {
    s.bit_cast(s.shl::<23>(s.add_i(n, s.splat_i(127))))
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut y = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        y = s.mul_add(y, x, s.splat(c));
    }
    y
}

#[inline(always)]
pub(crate) fn exp_v<S: Simd>(s: S, x: S::F) -> S::F {
    // The limits come first, so that NaN passes through.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let shifted = s.mul_add(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.mul_add(n, s.splat(-LN2_HI), x);
    let r = s.mul_add(n, s.splat(-LN2_LO), r);
    let p = polynomial(
        s,
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5],
    );
    let p = s.mul_add(s.mul(r, r), p, r);
    let p = s.add(p, s.splat(1.0));
    // Two steps, because 2^n alone leaves the range of normal numbers before the result does.
    let n = s.sub_i(s.to_bits(shifted), s.splat_i(ROUND.to_bits().cast_signed()));
    let half = s.shr::<1>(n);
    s.mul(s.mul(p, pow2(s, half)), pow2(s, s.sub_i(n, half)))
}

#[inline(always)]
pub(crate) fn sigmoid_v<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp_v(s, s.sub(s.splat(0.0), x))))
}

#[inline(always)]
pub(crate) fn ln_v<S: Simd>(s: S, x: S::F) -> S::F {
    // Splits x into 2^k * m with sqrt(1/2) <= m < sqrt(2).
    let sqrt_half = s.splat_i(0x3f35_04f3);
    let shifted = s.sub_i(s.to_bits(x), sqrt_half);
    let k = s.to_float(s.shr::<23>(shifted));
    let m = s.bit_cast(s.add_i(s.and_i(shifted, s.splat_i(0x007f_ffff)), sqrt_half));
    let f = s.sub(m, s.splat(1.0));
    let p = polynomial(
        s,
        f,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let f2 = s.mul(f, f);
    let y = s.mul(s.mul(f, f2), p);
    let y = s.mul_add(k, s.splat(LN2_LO), y);
    let y = s.mul_add(f2, s.splat(-0.5), y);
    s.mul_add(k, s.splat(LN2_HI), s.add(f, y))
}

#[inline(always)]
pub(crate) fn softplus_v<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let e = exp_v(s, s.min(s.splat(20.0), x));
    let w = s.add(one, e);
    // What 1 + e lost to rounding comes back as a first-order correction, so that tiny results keep all digits.
    let lost = s.sub(e, s.sub(w, one));
    let y = s.add(ln_v(s, w), s.div(lost, w));
    s.select_lt(s.splat(20.0), x, x, y)
}
