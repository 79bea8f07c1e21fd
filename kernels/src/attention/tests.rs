use super::*;
use crate::math::exp;
use crate::quant::{narrow_bf16, round_bf16, widen_bf16};
use crate::testing::{assert_bits, assert_close, cpus, noise};
use proptest::prelude::*;

/// The formula, in `f64`.
fn reference(args: &SparseAttention<'_>, keys: &[&[f32]]) -> Vec<f32> {
    let head_dim = args.q.len() / args.sink.len();
    let head = |(q, &sink): (&[f32], &f32)| -> Vec<f32> {
        let dot = |key: &[f32]| -> f64 {
            q.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let logits: Vec<f64> =
            keys.iter().map(|key| dot(key) * f64::from(args.softmax_scale)).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
        let total = e.iter().sum::<f64>() + (f64::from(sink) - max).exp();
        let channel = |c: usize| {
            (keys.iter().zip(&e).map(|(key, e)| e * f64::from(key[c])).sum::<f64>() / total) as f32
        };
        (0..head_dim).map(channel).collect()
    };
    args.q.chunks(head_dim).zip(args.sink).flat_map(head).collect()
}

fn check(num_heads: usize, head_dim: usize, num_keys: usize) {
    let q: Vec<f32> = noise(1, num_heads * head_dim).iter().map(|x| x * 3.0).collect();
    let data = noise(2, num_keys * head_dim);
    let rows: Vec<&[f32]> = data.chunks(head_dim).collect();
    let sink = noise(3, num_heads);
    let args = SparseAttention {
        q: &q,
        sink: &sink,
        keys: KeyRows::F32(&rows),
        softmax_scale: (head_dim as f32).powf(-0.5),
        probabilities: Probabilities::Exact,
    };
    let expected = reference(&args, &rows);
    let mut first = None;
    for cpu in cpus() {
        let mut out = vec![f32::NAN; q.len()];
        sparse_attention(&cpu, &args, &mut out);
        assert_close(&out, &expected, 2e-6, "attention");
        assert_bits(&out, first.get_or_insert_with(|| out.clone()), cpu.isa().name());
    }
}

#[test]
fn is_the_formula_for_every_shape() {
    check(1, 16, 1);
    check(3, 40, 31);
    check(5, 64, 33);
    check(4, 512, 100);
    check(7, 8, 257);
}

#[test]
fn bf16_rows_give_the_bits_of_the_same_rows_as_f32() {
    let (num_heads, head_dim, num_keys) = (3, 48, 70);
    let (q, sink) = (noise(1, num_heads * head_dim), noise(3, num_heads));
    let mut narrow = vec![bf16::ZERO; num_keys * head_dim];
    narrow_bf16(&noise(2, num_keys * head_dim), &mut narrow);
    let mut wide = vec![0.0; narrow.len()];
    widen_bf16(&narrow, &mut wide);
    let narrow: Vec<&[bf16]> = narrow.chunks(head_dim).collect();
    let wide: Vec<&[f32]> = wide.chunks(head_dim).collect();
    for cpu in cpus() {
        for probabilities in [Probabilities::Exact, Probabilities::Bf16] {
            let [a, b] = [KeyRows::F32(&wide), KeyRows::Bf16(&narrow)].map(|keys| {
                let args =
                    SparseAttention { q: &q, sink: &sink, keys, softmax_scale: 0.2, probabilities };
                let mut out = vec![0.0; q.len()];
                sparse_attention(&cpu, &args, &mut out);
                out
            });
            assert_bits(&a, &b, "bf16 and f32 rows");
        }
    }
}

#[test]
fn official_probabilities_are_rounded_but_not_their_sum() {
    // Keys of one channel: logits are the keys, and the answer is computed by hand.
    let keys = [0.0_f32, -0.3, -1.0];
    let rows: Vec<&[f32]> = keys.chunks(1).collect();
    let args = SparseAttention {
        q: &[1.0],
        sink: &[-2.0],
        keys: KeyRows::F32(&rows),
        softmax_scale: 1.0,
        probabilities: Probabilities::Bf16,
    };
    for cpu in cpus() {
        let mut e = keys.map(exp);
        let total = e.iter().sum::<f32>() + exp(-2.0);
        round_bf16(&cpu, &mut e);
        let expected = e.iter().zip(keys).map(|(e, k)| e * k).sum::<f32>() / total;
        let mut out = [0.0];
        sparse_attention(&cpu, &args, &mut out);
        assert_close(&out, &[expected], 2e-7, "rounded");
        let exact = SparseAttention { probabilities: Probabilities::Exact, ..args };
        let mut unrounded = [0.0];
        sparse_attention(&cpu, &exact, &mut unrounded);
        assert!((out[0] - unrounded[0]).abs() > 1e-5, "rounding shows");
    }
}

#[test]
fn a_big_sink_takes_the_attention_and_huge_logits_stay_finite() {
    let rows: [&[f32]; 2] = [&[1.0; 16], &[1.0; 16]];
    for cpu in cpus() {
        let run = |sink: f32, scale: f32| {
            let args = SparseAttention {
                q: &[1.0; 16],
                sink: &[sink],
                keys: KeyRows::F32(&rows),
                softmax_scale: scale,
                probabilities: Probabilities::Exact,
            };
            let mut out = [0.0; 16];
            sparse_attention(&cpu, &args, &mut out);
            out[0]
        };
        assert_eq!(run(200.0, 1.0), 0.0);
        assert_eq!(run(0.0, 1e6), 1.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_head_does_not_depend_on_the_others(
        num_heads in 1_usize..9, head_dim in 1_usize..100, num_keys in 1_usize..90, seed: u32,
    ) {
        let (q, sink) = (noise(seed, num_heads * head_dim), noise(!seed, num_heads));
        let data = noise(seed ^ 1, num_keys * head_dim);
        let rows: Vec<&[f32]> = data.chunks(head_dim).collect();
        let args = SparseAttention {
            q: &q, sink: &sink, keys: KeyRows::F32(&rows), softmax_scale: 0.3,
            probabilities: Probabilities::Exact,
        };
        let mut expected = vec![0.0; q.len()];
        sparse_attention(&Cpu::single_threaded(crate::Isa::PORTABLE), &args, &mut expected);
        for cpu in cpus() {
            for h in 0..num_heads {
                let at = h * head_dim..(h + 1) * head_dim;
                let args = SparseAttention { q: &q[at.clone()], sink: &sink[h..=h], ..args };
                let mut out = vec![0.0; head_dim];
                sparse_attention(&cpu, &args, &mut out);
                assert_bits(&out, &expected[at], cpu.isa().name());
            }
        }
    }
}
