use super::*;
use crate::testing::{assert_bits, assert_close, cpus, noise};

fn check(num_heads: usize, head_dim: usize, num_keys: usize) {
    let (q, weights) = (noise(1, num_heads * head_dim), noise(2, num_heads));
    let data = noise(3, num_keys * head_dim);
    let rows: Vec<&[f32]> = data.chunks(head_dim).collect();
    let expected: Vec<f32> = rows
        .iter()
        .map(|key| {
            let head = |(q, &weight): (&[f32], &f32)| {
                let dot: f64 = q.iter().zip(*key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                f64::from(weight) * dot.max(0.0)
            };
            q.chunks(head_dim).zip(&weights).map(head).sum::<f64>() as f32
        })
        .collect();
    let query = IndexerQuery { q: &q, weights: &weights };
    let mut first = None;
    for cpu in cpus() {
        let mut scores = vec![f32::NAN; num_keys];
        indexer_scores(&cpu, &query, KeyRows::F32(&rows), &mut scores);
        assert_close(&scores, &expected, 2e-6, "scores");
        assert_bits(&scores, first.get_or_insert_with(|| scores.clone()), cpu.isa().name());
        // A score does not depend on which keys it is computed with.
        let mut alone = [0.0];
        indexer_scores(&cpu, &query, KeyRows::F32(&rows[num_keys - 1..]), &mut alone);
        assert_bits(&alone, &scores[num_keys - 1..], "alone");
    }
}

#[test]
fn is_the_formula_for_every_shape() {
    check(1, 16, 1);
    check(3, 40, 35);
    check(32, 128, 70);
    check(64, 128, 33);
}

#[test]
fn no_key_is_no_score() {
    let query = IndexerQuery { q: &[1.0; 8], weights: &[1.0; 2] };
    for cpu in cpus() {
        indexer_scores(&cpu, &query, KeyRows::F32(&[]), &mut []);
    }
}
