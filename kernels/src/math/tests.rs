use super::*;
use crate::simd::{Kernel, LANES, Wide};
use crate::testing::{assert_bits, cpus, noise};

/// Distance in units in the last place of the exact result.
fn ulps(actual: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    let ulp = f64::from(rounded.abs().next_up()) - f64::from(rounded.abs());
    (f64::from(actual) - exact).abs() / ulp
}

#[test]
fn exp_is_within_one_and_a_half_ulps() {
    let mut worst = 0.0_f64;
    for i in -1_040_000..887_000 {
        let x = i as f32 * 1e-4;
        worst = worst.max(ulps(exp(x), f64::from(x).exp()));
    }
    assert!(worst < 1.5, "{worst}");
    assert_eq!([exp(f32::NEG_INFINITY), exp(-1e9), exp(0.0)], [0.0, 0.0, 1.0]);
    assert_eq!([exp(f32::INFINITY), exp(88.8), exp(1e9)], [f32::INFINITY; 3]);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn ln_is_within_one_ulp() {
    let mut worst = 0.0_f64;
    for bits in (f32::MIN_POSITIVE.to_bits()..f32::MAX.to_bits()).step_by(1009) {
        let x = f32::from_bits(bits);
        worst = worst.max(ulps(ln(x), f64::from(x).ln()));
    }
    for i in 1..100_000 {
        let x = 0.5 + i as f32 * 1.5e-5;
        worst = worst.max(ulps(ln(x), f64::from(x).ln()));
    }
    assert!(worst < 1.0, "{worst}");
    assert_eq!(ln(1.0), 0.0);
}

#[test]
fn sigmoid_and_softplus_keep_their_digits() {
    for i in -870_000..870_000 {
        let x = i as f32 * 1e-4;
        let z = f64::from(x);
        assert!(ulps(sigmoid(x), 1.0 / (1.0 + (-z).exp())) < 3.0, "sigmoid({x})");
        if x <= 20.0 {
            assert!(ulps(softplus(x), z.exp().ln_1p()) < 3.0, "softplus({x})");
        } else {
            assert_eq!(softplus(x), x);
        }
    }
    assert!(sigmoid(f32::NAN).is_nan());
    assert!(softplus(f32::NAN).is_nan());
}

#[test]
fn sine_and_cosine_are_those_of_the_platform_to_the_last_digits() {
    for i in -1_000_000..1_000_000_i32 {
        let x = f64::from(i) * 1.048_575_3;
        let (sin, cos) = sin_cos(x);
        assert!((sin - x.sin()).abs() < 4e-16, "sin {x}");
        assert!((cos - x.cos()).abs() < 4e-16, "cos {x}");
    }
}

/// All functions of all lanes.
struct All<'a> {
    x: &'a [[f32; LANES]],
}

impl Kernel for All<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Wide>(self, s: S) -> Vec<f32> {
        let mut out = Vec::new();
        for x in self.x {
            let x = s.load(x);
            let positive = s.max(s.splat(1e-30), x);
            for y in [exp_v(s, x), sigmoid_v(s, x), softplus_v(s, x), ln_v(s, positive)] {
                let mut lanes = [0.0; LANES];
                s.store(y, &mut lanes);
                out.extend(lanes);
            }
        }
        out
    }
}

#[test]
fn vectors_equal_scalars_to_the_bit() {
    let x: Vec<f32> = noise(1, 4096 * LANES).into_iter().map(|x| x * 60.0).collect();
    let (x, _) = x.as_chunks();
    let scalar: Vec<f32> = x
        .iter()
        .flat_map(|x| {
            let positive = x.map(|x| x.max(1e-30));
            [x.map(exp), x.map(sigmoid), x.map(softplus), positive.map(ln)].concat()
        })
        .collect();
    for cpu in cpus() {
        assert_bits(&cpu.run(All { x }), &scalar, cpu.isa().name());
    }
}
