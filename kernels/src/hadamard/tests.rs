use super::*;
use crate::quant::{fp4_round_trip, round_bf16};
use crate::testing::{Goldens, assert_bits, assert_close, cpus, noise};

#[test]
fn matches_the_goldens() {
    let goldens = Goldens::open();
    for cpu in cpus() {
        let mut x = goldens.floats("hadamard.x");
        hadamard(&cpu, &mut x, 128);
        assert_close(&x, &goldens.floats("hadamard.y"), 1.0 / 256.0, "before rounding");
        round_bf16(&cpu, &mut x);
        assert_bits(&x, &goldens.floats("hadamard.y"), "rounded to bf16");
        fp4_round_trip(&cpu, &mut x);
        assert_bits(&x, &goldens.floats("hadamard_fp4.y"), "quantised");
    }
}

#[test]
fn is_sylvesters_matrix_for_every_size() {
    for row_len in [1_usize, 2, 8, 16, 32, 64, 256] {
        let x = noise(1, 2 * row_len);
        let expected: Vec<f32> = x
            .chunks(row_len)
            .flat_map(|x| {
                (0..row_len).map(move |i| {
                    let sign =
                        |k: usize| if (i & k).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let sum: f64 = x.iter().enumerate().map(|(k, &x)| sign(k) * f64::from(x)).sum();
                    (sum / (row_len as f64).sqrt()) as f32
                })
            })
            .collect();
        let mut first = None;
        for cpu in cpus() {
            let mut y = x.clone();
            hadamard(&cpu, &mut y, row_len);
            assert_close(&y, &expected, 1e-6, "row");
            assert_bits(&y, first.get_or_insert_with(|| y.clone()), "instruction set");
        }
    }
}
