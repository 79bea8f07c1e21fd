use super::*;
use crate::testing::{assert_bits, assert_close, cpus, noise};

#[test]
fn is_the_formula_with_and_without_limit_and_weights() {
    let width = 37;
    let (gate, up, weights) = (noise(1, 3 * width), noise(2, 3 * width), noise(3, 3));
    let (gate, up): (Vec<f32>, Vec<f32>) =
        gate.iter().zip(&up).map(|(g, u)| (g * 6.0, u * 6.0)).unzip();
    for limit in [0.0, 2.0] {
        for routing_weights in [None, Some(&weights[..])] {
            let args = Swiglu { gate: &gate, up: &up, limit, routing_weights };
            let value = |i: usize| {
                let (mut g, mut u) = (f64::from(gate[i]), f64::from(up[i]));
                if limit > 0.0 {
                    (g, u) =
                        (g.min(f64::from(limit)), u.clamp(-f64::from(limit), f64::from(limit)));
                }
                let weight = routing_weights.map_or(1.0, |w| f64::from(w[i / width]));
                (g / (1.0 + (-g).exp()) * u * weight) as f32
            };
            let expected: Vec<f32> = (0..gate.len()).map(value).collect();
            let mut first = None;
            for cpu in cpus() {
                let mut out = vec![f32::NAN; gate.len()];
                swiglu(&cpu, &args, &mut out);
                assert_close(&out, &expected, 1e-6, "activation");
                assert_bits(&out, first.get_or_insert_with(|| out.clone()), cpu.isa().name());
            }
        }
    }
}

#[test]
fn nan_is_not_clamped_away() {
    for cpu in cpus() {
        let args = Swiglu {
            gate: &[f32::NAN, 1.0],
            up: &[1.0, f32::NAN],
            limit: 2.0,
            routing_weights: None,
        };
        let mut out = [0.0; 2];
        swiglu(&cpu, &args, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "{out:?}");
    }
}

#[test]
fn no_token_is_no_work() {
    for cpu in cpus() {
        let args = Swiglu { gate: &[], up: &[], limit: 2.0, routing_weights: Some(&[]) };
        swiglu(&cpu, &args, &mut []);
    }
}
