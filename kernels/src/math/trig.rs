//! Sine and cosine of large angles, in `f64`.

/// `pi / 2` in three parts of 33 bits, so that a multiple below `2^20` of each of the first two is exact.
const PI_HALF: [f64; 3] = [
    f64::from_bits(0x3ff9_21fb_5440_0000),
    f64::from_bits(0x3dd0_b461_1a60_0000),
    f64::from_bits(0x3ba3_198a_2e03_7073),
];

/// Adding this rounds to an integer, which is then in the low mantissa bits.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// `(sin x, cos x)` for `|x| < 2^20`, within one unit in the last place of `f64` or so.
#[inline]
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-PI_HALF[0], x);
    let r = n.mul_add(-PI_HALF[1], r);
    let r = n.mul_add(-PI_HALF[2], r);
    let (sin, cos) = (sin_kernel(r), cos_kernel(r));
    match shifted.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Taylor-like minimax polynomial on `[-pi/4, pi/4]`.
fn sin_kernel(x: f64) -> f64 {
    const S: [f64; 6] = [
        1.589_690_995_211_55e-10,
        -2.505_076_025_340_686_3e-8,
        2.755_731_370_707_006_8e-6,
        -1.984_126_982_985_795e-4,
        8.333_333_333_322_49e-3,
        -1.666_666_666_666_663_2e-1,
    ];
    let z = x * x;
    (x * z).mul_add(horner(z, S), x)
}

fn cos_kernel(x: f64) -> f64 {
    const C: [f64; 6] = [
        -1.135_964_755_778_819_5e-11,
        2.087_572_321_298_175e-9,
        -2.755_731_435_139_066_3e-7,
        2.480_158_728_947_673e-5,
        -1.388_888_888_887_411e-3,
        4.166_666_666_666_66e-2,
    ];
    let z = x * x;
    (z * z).mul_add(horner(z, C), z.mul_add(-0.5, 1.0))
}

fn horner(z: f64, coefficients: [f64; 6]) -> f64 {
    coefficients[1..].iter().fold(coefficients[0], |y, &c| y.mul_add(z, c))
}
