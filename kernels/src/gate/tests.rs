use super::*;
use crate::testing::{Goldens, assert_bits, assert_close, cpus, noise};
use proptest::prelude::*;

#[test]
fn routing_matches_the_goldens() {
    let goldens = Goldens::open();
    let bias = goldens.floats("gate.bias");
    let (idx, weights) = (goldens.ints("gate.idx"), goldens.floats("gate.weights"));
    for cpu in cpus() {
        let mut scores = goldens.floats("gate.logits");
        gate_scores(&cpu, &mut scores);
        for (token, scores) in scores.chunks(16).enumerate() {
            let actual = select_experts(scores, &bias, 4);
            let expected: Vec<u32> =
                idx[4 * token..4 * token + 4].iter().map(|&i| i.try_into().unwrap()).collect();
            assert_eq!(actual, expected, "token {token}");
            let expected = &weights[4 * token..4 * token + 4];
            let sum = expected.iter().sum::<f32>();
            let mut actual_weights = [0.0; 4];
            routing_weights(scores, &actual, sum, &mut actual_weights);
            assert_close(&actual_weights, expected, 1e-6, "weights");
        }
    }
}

#[test]
fn scores_are_accurate_at_both_ends() {
    let logits: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.2).collect();
    let exact = |z: f64| if z > 20.0 { z.sqrt() } else { z.exp().ln_1p().sqrt() };
    for cpu in cpus() {
        let mut scores = logits.clone();
        gate_scores(&cpu, &mut scores);
        for (&z, &score) in logits.iter().zip(&scores) {
            let expected = exact(f64::from(z));
            let error = (f64::from(score) - expected).abs() / expected;
            assert!(error < 3e-7, "sqrt(softplus({z})) is {score:e}, expected {expected:e}");
        }
    }
}

#[test]
fn ties_go_to_the_lower_index() {
    assert_eq!(topk(&[1.0, 3.0, 3.0, 2.0, 3.0], 2), [1, 2]);
    assert_eq!(topk(&[-0.0, 0.0, -0.0], 2), [0, 1]);
    assert_eq!(topk(&[f32::NAN, f32::NEG_INFINITY, 1.0], 3), [2, 1, 0]);
    assert_eq!(topk(&[1.0], 4), [0]);
    assert_eq!(topk(&[1.0, 2.0], 0), [0_u32; 0]);
}

#[test]
fn the_bias_selects_but_does_not_weigh() {
    let scores = [1.0, 2.0, 3.0, 4.0];
    let idx = select_experts(&scores, &[10.0, 0.0, 0.0, 0.0], 2);
    assert_eq!(idx, [0, 3]);
    let mut weights = [0.0; 2];
    routing_weights(&scores, &idx, 2.5, &mut weights);
    assert_bits(&weights, &[0.2 * 2.5, 0.8 * 2.5], "weights");
}

proptest! {
    #[test]
    fn topk_is_a_stable_sort(seed: u32, len in 1_usize..200, k in 0_usize..220, levels in 1_u8..50) {
        let level = f32::from(levels);
        let values: Vec<f32> = noise(seed, len).into_iter().map(|x| (x * level).round()).collect();
        let mut expected: Vec<u32> = (0..len as u32).collect();
        expected.sort_by(|&a, &b| values[b as usize].partial_cmp(&values[a as usize]).unwrap());
        expected.truncate(k);
        prop_assert_eq!(topk(&values, k), expected);
    }

    #[test]
    fn scores_have_the_same_bits_everywhere(seed: u32, len in 1_usize..100, spread in 0.1_f32..60.0) {
        let logits: Vec<f32> = noise(seed, len).into_iter().map(|x| x * spread).collect();
        let all: Vec<Vec<f32>> = cpus().iter().map(|cpu| {
            let mut scores = logits.clone();
            gate_scores(cpu, &mut scores);
            scores
        }).collect();
        for scores in &all {
            assert_bits(scores, &all[0], "scores");
        }
    }
}
