use super::*;
use crate::testing::{Goldens, assert_bits, cpus, noise};
use proptest::prelude::*;

#[test]
fn fp8_matches_the_goldens() {
    let goldens = Goldens::open();
    let x = goldens.floats("fp8.x");
    for cpu in cpus() {
        for block in [64, 128] {
            let name = |part: &str| format!("fp8.b{block}.{part}");
            let mut codes = vec![0; x.len()];
            let mut scales = vec![0; x.len() / block];
            fp8_quantize(&cpu, &x, block, &mut codes, &mut scales);
            assert_eq!(codes, goldens.bytes(&name("q")), "{cpu:?} codes");
            let scales: Vec<f32> = scales.into_iter().map(ue8m0_to_f32).collect();
            assert_bits(&scales, &goldens.floats(&name("scale_f32")), "scales");
            let mut y = x.clone();
            fp8_round_trip(&cpu, &mut y, block);
            assert_bits(&y, &goldens.floats(&name("roundtrip")), "round trip");
        }
    }
}

#[test]
fn fp4_matches_the_goldens() {
    let goldens = Goldens::open();
    let x = goldens.floats("fp4.x");
    for cpu in cpus() {
        let mut codes = vec![0; x.len() / 2];
        let mut scales = vec![0; x.len() / 32];
        fp4_quantize(&cpu, &x, &mut codes, &mut scales);
        let values: Vec<f32> =
            codes.iter().flat_map(|&c| [e2m1_to_f32(c), e2m1_to_f32(c >> 4)]).collect();
        assert_bits(&values, &goldens.floats("fp4.q_f32"), "values");
        let scales: Vec<f32> = scales.into_iter().map(ue8m0_to_f32).collect();
        assert_bits(&scales, &goldens.floats("fp4.scale_f32"), "scales");
        let mut y = x.clone();
        fp4_round_trip(&cpu, &mut y);
        assert_bits(&y, &goldens.floats("fp4.roundtrip"), "round trip");
    }
}

#[test]
fn every_e4m3_code_survives() {
    for code in 0..=255_u8 {
        let value = e4m3_to_f32(code);
        let expected = if code & 0x7f == 0x7f { 0x7f } else { code };
        assert_eq!(f32_to_e4m3(value), expected, "{value}");
    }
}

#[test]
fn e4m3_rounds_to_the_nearest_code_and_ties_to_the_even_one() {
    for code in 0..0x7e_u8 {
        let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
        let middle = low.midpoint(high);
        let even = if code % 2 == 0 { code } else { code + 1 };
        let check = |x: f32, expected: u8| {
            assert_eq!(f32_to_e4m3(x), expected, "{x} between {low} and {high}");
            assert_eq!(f32_to_e4m3(-x), expected | 0x80, "-{x}");
        };
        check(middle, even);
        check(middle.next_down(), code);
        check(middle.next_up(), code + 1);
    }
    assert_eq!([f32_to_e4m3(1e30), f32_to_e4m3(-1e30)], [0x7e, 0xfe], "saturates");
    assert_eq!(f32_to_e4m3(f32::NAN), 0x7f);
}

#[test]
fn e2m1_rounds_to_the_nearest_code_and_ties_to_the_even_one() {
    for code in 0..7_u8 {
        let (low, high) = (e2m1_to_f32(code), e2m1_to_f32(code + 1));
        let middle = low.midpoint(high);
        let even = if code % 2 == 0 { code } else { code + 1 };
        assert_eq!(f32_to_e2m1(middle), even, "{middle}");
        assert_eq!(f32_to_e2m1(middle.next_down()), code);
        assert_eq!(f32_to_e2m1(-middle.next_up()), (code + 1) | 8);
    }
}

#[test]
fn ue8m0_is_a_power_of_two() {
    for code in 0..255_u8 {
        assert_eq!(f64::from(ue8m0_to_f32(code)), 2_f64.powi(i32::from(code) - 127));
    }
    assert!(ue8m0_to_f32(255).is_nan());
}

#[test]
fn nan_and_tiny_blocks_pass_through_quantisation() {
    for cpu in cpus() {
        let mut x = vec![0.0; 128];
        x[5] = f32::NAN;
        x[64] = 1e-30;
        fp8_round_trip(&cpu, &mut x, 64);
        assert!(x[5].is_nan());
        assert_eq!(x[64], 0.0);
        let mut x = vec![f32::MIN_POSITIVE; 32];
        x[3] = f32::NAN;
        fp4_round_trip(&cpu, &mut x);
        assert!(x[3].is_nan());
        assert_eq!(x[0], f32::MIN_POSITIVE);
    }
}

#[test]
fn bf16_rounds_as_the_half_crate_does() {
    let mut x: Vec<f32> =
        (0..200_000_u32).map(|i| f32::from_bits(i.wrapping_mul(21_613))).collect();
    x.retain(|x| !x.is_nan());
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0]);
    let expected: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    for cpu in cpus() {
        let mut y = x.clone();
        round_bf16(&cpu, &mut y);
        assert_bits(&y, &expected, cpu.isa().name());
        let mut nan = [f32::NAN; 17];
        round_bf16(&cpu, &mut nan);
        assert!(nan.iter().all(|x| x.is_nan()));
    }
}

proptest! {
    #[test]
    fn round_trips_equal_their_codes(seed: u32, len in 1_usize..300, exponent in -40_i32..30) {
        let scale = 2_f32.powi(exponent);
        let x: Vec<f32> = noise(seed, 2 * len).into_iter().map(|x| x * scale).collect();
        for cpu in cpus() {
            let mut codes = vec![0; x.len()];
            let mut scales = vec![0; x.len().div_ceil(128)];
            fp8_quantize(&cpu, &x, 128, &mut codes, &mut scales);
            let expected: Vec<f32> = codes.iter().enumerate()
                .map(|(i, &code)| e4m3_to_f32(code) * ue8m0_to_f32(scales[i / 128])).collect();
            let mut y = x.clone();
            fp8_round_trip(&cpu, &mut y, 128);
            assert_bits(&y, &expected, cpu.isa().name());

            let mut codes = vec![0; x.len() / 2];
            let mut scales = vec![0; x.len().div_ceil(32)];
            fp4_quantize(&cpu, &x, &mut codes, &mut scales);
            let expected: Vec<f32> = (0..x.len()).map(|i| {
                e2m1_to_f32(codes[i / 2] >> (4 * (i % 2))) * ue8m0_to_f32(scales[i / 32])
            }).collect();
            let mut y = x.clone();
            fp4_round_trip(&cpu, &mut y);
            assert_bits(&y, &expected, cpu.isa().name());
        }
    }
}
