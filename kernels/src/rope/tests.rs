use super::*;
use crate::testing::{Goldens, assert_bits, assert_close, noise};

const MAIN: RopeParams = RopeParams { theta: 10_000.0, rotary_dim: 64, yarn: None };
const COMPRESSED: RopeParams = RopeParams {
    theta: 160_000.0,
    rotary_dim: 64,
    yarn: Some(Yarn {
        factor: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_positions: 65_536,
    }),
};

#[test]
fn frequencies_match_the_goldens() {
    let goldens = Goldens::open();
    let check = |params: &RopeParams, name: &str| {
        assert_bits(RopeTable::new(params).inv_freq(), &goldens.floats(name), name);
    };
    check(&MAIN, "rope.inv_freq.main");
    check(&COMPRESSED, "rope.inv_freq.compress_yarn");
}

#[test]
fn rotations_match_the_goldens_up_to_a_million_tokens() {
    let goldens = Goldens::open();
    let positions = goldens.ints("rope.pos");
    assert_eq!(positions.last(), Some(&1_048_575));
    for (params, name) in [(&MAIN, "main"), (&COMPRESSED, "compress")] {
        let table = RopeTable::new(params);
        let mut x = goldens.floats("rope.x");
        let mut inverse = x.clone();
        let tokens = x.chunks_mut(2 * 128).zip(inverse.chunks_mut(2 * 128));
        for ((x, inverse), &position) in tokens.zip(&positions) {
            let angles = table.angles(position.try_into().unwrap());
            rope(x, 128, &angles);
            rope_inverse(inverse, 128, &angles);
        }
        assert_close(&x, &goldens.floats(&format!("rope.{name}.y")), 3e-7, name);
        assert_close(&inverse, &goldens.floats(&format!("rope.{name}.y_inverse")), 3e-7, name);
    }
}

#[test]
fn angles_are_within_a_rounding_of_the_platforms() {
    let table = RopeTable::new(&MAIN);
    for position in (0..1_048_576).step_by(997) {
        let angles = table.angles(position);
        for (&(cos, sin), f) in angles.pairs.iter().zip(&table.inv_freq) {
            let angle = f64::from(position as f32 * f);
            let ulp = f64::from(f32::EPSILON) / 2.0;
            assert!((f64::from(cos) - angle.cos()).abs() <= ulp, "cos {angle}");
            assert!((f64::from(sin) - angle.sin()).abs() <= ulp, "sin {angle}");
        }
    }
}

#[test]
fn the_inverse_undoes_and_leaves_the_first_channels_alone() {
    let angles = RopeTable::new(&COMPRESSED).angles(12_345);
    let x = noise(1, 3 * 96);
    let mut y = x.clone();
    rope(&mut y, 96, &angles);
    for (x, y) in x.chunks(96).zip(y.chunks(96)) {
        assert_bits(&y[..32], &x[..32], "channels that are not rotated");
        assert!(x[32..].iter().zip(&y[32..]).all(|(x, y)| x != y), "rotated channels");
    }
    rope_inverse(&mut y, 96, &angles);
    assert_close(&y, &x, 3e-7, "there and back");
}
