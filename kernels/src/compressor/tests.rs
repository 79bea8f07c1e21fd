use super::*;
use crate::testing::{assert_bits, assert_close, cpus, noise};

#[test]
fn is_a_softmax_over_the_rows_of_each_channel() {
    for (num_rows, width) in [(1, 16), (4, 37), (8, 512), (128, 40)] {
        let (kv, score) = (noise(1, num_rows * width), noise(2, num_rows * width));
        let score: Vec<f32> = score.iter().map(|x| x * 20.0).collect();
        let rows: Vec<PoolRow<'_>> = kv
            .chunks(width)
            .zip(score.chunks(width))
            .map(|(kv, score)| PoolRow { kv, score })
            .collect();
        let expected: Vec<f32> = (0..width)
            .map(|c| {
                let e = |row: &PoolRow<'_>| f64::from(row.score[c]).exp();
                let total: f64 = rows.iter().map(e).sum();
                (rows.iter().map(|r| e(r) * f64::from(r.kv[c])).sum::<f64>() / total) as f32
            })
            .collect();
        let mut first = None;
        for cpu in cpus() {
            let mut out = vec![f32::NAN; width];
            compress_pool(&cpu, &rows, &mut out);
            assert_close(&out, &expected, 2e-6, "pooled");
            assert_bits(&out, first.get_or_insert_with(|| out.clone()), cpu.isa().name());
        }
    }
}

#[test]
fn rows_with_a_score_of_minus_infinity_are_as_if_absent() {
    let (kv, score) = (noise(1, 4 * 24), noise(2, 4 * 24));
    let absent = PoolRow { kv: &[0.0; 24], score: &[f32::NEG_INFINITY; 24] };
    let row =
        |i: usize| PoolRow { kv: &kv[24 * i..24 * (i + 1)], score: &score[24 * i..24 * (i + 1)] };
    for cpu in cpus() {
        let (mut with, mut without) = ([0.0; 24], [0.0; 24]);
        compress_pool(&cpu, &[absent, absent, row(0), row(1), row(2)], &mut with);
        compress_pool(&cpu, &[row(0), row(1), row(2)], &mut without);
        assert_bits(&with, &without, "pooled");
    }
}
