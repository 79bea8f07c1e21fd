use super::*;
use crate::testing::{assert_bits, assert_close, cpus, noise};

#[test]
fn is_the_formula_for_every_length() {
    for row_len in [1, 15, 16, 40, 512] {
        let (x, weight) = (noise(1, 3 * row_len), noise(2, row_len));
        let unweighted: Vec<f32> = x
            .chunks(row_len)
            .flat_map(|row| {
                let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
                let inverse = (square / row_len as f64 + 1e-6).sqrt().recip();
                row.iter().map(move |&x| (f64::from(x) * inverse) as f32)
            })
            .collect();
        let weighted: Vec<f32> =
            unweighted.iter().zip(weight.iter().cycle()).map(|(x, w)| x * w).collect();
        let mut first = None;
        for cpu in cpus() {
            let mut y = x.clone();
            rms_norm_unweighted(&cpu, &mut y, row_len, 1e-6);
            assert_close(&y, &unweighted, 1e-6, "unweighted");
            let mut y = x.clone();
            rms_norm(&cpu, &mut y, &weight, 1e-6);
            assert_close(&y, &weighted, 1e-6, "weighted");
            assert_bits(&y, first.get_or_insert_with(|| y.clone()), cpu.isa().name());
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for cpu in cpus() {
        let mut x = [0.0; 20];
        rms_norm_unweighted(&cpu, &mut x, 20, 1e-6);
        assert_eq!(x, [0.0; 20]);
    }
}
