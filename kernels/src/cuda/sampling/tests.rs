use super::*;
use crate::cuda::testing::{cpu, gpu, gpus};
use crate::cuda::{Elem, Variant};
use crate::sampling::{self, DrawKey, LogProbs, Sampling};
use crate::testing::{assert_close, noise};

const PARAMS: SampleParams = SampleParams {
    seed_lo: 7,
    seed_hi: 9,
    choice: 0,
    position: 0,
    temperature: 1.0,
    min_p: 0.0,
    top_k: 0,
    top_p: 1.0,
    num_top_logprobs: 0,
    wants_logprob: 0,
};

fn expected(logits: &[f32], params: &SampleParams, adjustment: &Adjustment<'_>) -> u32 {
    let key = DrawKey {
        seed: u64::from(params.seed_hi) << 32 | u64::from(params.seed_lo),
        choice: params.choice,
        position: params.position,
    };
    let SampleParams { temperature, min_p, top_k, top_p, .. } = *params;
    let mut logits = logits.to_vec();
    adjustment.apply(&mut logits);
    sampling::sample(&cpu(), &logits, &Sampling { temperature, min_p, top_k, top_p, key })
}

fn sample_plain(gpu: &Gpu, logits: &Tensor, params: &[SampleParams]) -> Vec<Sampled> {
    sample(gpu, logits, params, &vec![Adjustment::default(); params.len()])
}

fn check(logits: &[f32], vocab: usize, params: &[SampleParams]) {
    check_adjusted(logits, vocab, params, &vec![Adjustment::default(); params.len()]);
}

fn check_adjusted(
    logits: &[f32],
    vocab: usize,
    params: &[SampleParams],
    adjustments: &[Adjustment<'_>],
) {
    let gpu = gpu(Variant::Exact);
    let tensor = Tensor::upload(&gpu, Elem::F32, logits, vocab);
    let sampled = sample(&gpu, &tensor, params, adjustments);
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    let rows = sampled.iter().zip(params).zip(adjustments).zip(logits.chunks(vocab));
    for (((sampled, params), adjustment), logits) in rows {
        assert_eq!(sampled.token, expected(logits, params, adjustment), "{params:?}");
        let probabilities = LogProbs::new(&cpu(), logits);
        let logprob =
            if params.wants_logprob == 1 { probabilities.get(sampled.token) } else { 0.0 };
        assert_close(&[sampled.logprob], &[logprob], 1e-5, "log probability");
        let (tokens, logprobs): (Vec<u32>, Vec<f32>) =
            probabilities.top(params.num_top_logprobs as usize).into_iter().unzip();
        let (other_tokens, other): (Vec<u32>, Vec<f32>) = sampled.top.iter().copied().unzip();
        assert_eq!(other_tokens, tokens);
        if !logprobs.is_empty() {
            assert_close(&other, &logprobs, 1e-5, "log probabilities");
        }
    }
}

#[test]
fn it_draws_what_the_cpu_draws() {
    for vocab in [1, 33, 3000] {
        let mut params = Vec::new();
        for temperature in [0.0, 0.3, 1.0, 4.0] {
            for top_p in [1.0, 0.95, 0.3, 1e-6] {
                for position in 0..3 {
                    params.push(SampleParams { temperature, top_p, position, ..PARAMS });
                }
            }
        }
        let logits: Vec<f32> = noise(3, params.len() * vocab).iter().map(|x| x * 4.0).collect();
        check(&logits, vocab, &params);
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    // Many equal weights: the nucleus ends within them.
    let logits: Vec<f32> = (0..2000).map(|i| if i % 3 == 0 { 1.0 } else { -1.0 }).collect();
    let params = [(0.0, 1.0), (1.0, 0.5), (1.0, 0.01), (1.0, 0.9), (1.0, 1.0)];
    for (i, (temperature, top_p)) in params.into_iter().enumerate() {
        let num_top_logprobs = i as u32;
        let params = SampleParams { temperature, top_p, num_top_logprobs, ..PARAMS };
        check(&logits, 2000, &[params]);
    }
}

#[test]
fn it_reports_log_probabilities() {
    let params: Vec<_> = (0..6)
        .map(|i| SampleParams { num_top_logprobs: 4 * i, wants_logprob: i % 2, ..PARAMS })
        .collect();
    check(&noise(5, 6 * 500), 500, &params);
    // More than there are tokens.
    check(&noise(6, 3), 3, &[SampleParams { num_top_logprobs: 20, ..PARAMS }]);
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let gpu = gpus().into_iter().next().unwrap();
    let logits = noise(8, 5 * 1000);
    let params: Vec<_> = (0..5).map(|position| SampleParams { position, ..PARAMS }).collect();
    let all = sample_plain(&gpu, &Tensor::upload(&gpu, Elem::F32, &logits, 1000), &params);
    for (i, row) in logits.chunks(1000).enumerate() {
        let alone = sample_plain(&gpu, &Tensor::upload(&gpu, Elem::F32, row, 1000), &params[i..=i]);
        assert_eq!(alone[0], all[i]);
    }
}

#[test]
fn infinite_and_missing_numbers_are_passed_over() {
    let mut logits = noise(9, 300);
    logits[17] = f32::NEG_INFINITY;
    logits[4] = f32::NAN;
    let gpu = gpu(Variant::Exact);
    let tensor = Tensor::upload(&gpu, Elem::F32, &logits, 300);
    let params = SampleParams { temperature: 0.0, ..PARAMS };
    let best = (0..300).filter(|&i| i != 4).max_by(|&i, &j| logits[i].total_cmp(&logits[j]));
    assert_eq!(sample_plain(&gpu, &tensor, &[params])[0].token as usize, best.unwrap());
    for position in 0..20 {
        let params = SampleParams { position, ..PARAMS };
        let token = sample_plain(&gpu, &tensor, &[params])[0].token;
        assert!(token != 4 && token != 17);
    }
}

#[test]
fn unlikely_tokens_are_ruled_out() {
    for vocab in [5, 70, 3000] {
        let mut params = Vec::new();
        for (min_p, top_k) in [(0.2, 0), (0.0, 3), (0.0, 40), (0.01, 40), (0.9, 2), (1.0, 1)] {
            for top_p in [1.0, 0.6] {
                for position in 0..4 {
                    params.push(SampleParams { min_p, top_k, top_p, position, ..PARAMS });
                }
            }
        }
        let logits: Vec<f32> = noise(3, params.len() * vocab).iter().map(|x| x * 4.0).collect();
        check(&logits, vocab, &params);
        // Ties: the last that is kept is one of many alike.
        let alike: Vec<f32> = (0..logits.len()).map(|i| (i % 3) as f32).collect();
        check(&alike, vocab, &params);
    }
}

#[test]
fn adjusted_rows_are_drawn_from_and_the_plain_ones_reported() {
    const VOCAB: usize = 100;
    let words = [0x0f0f_f0f0, 0xffff_0000, 0x1234_5678, 0xf];
    let bias: Vec<(u32, f32)> =
        (0..VOCAB as u32).step_by(7).map(|id| (id, id as f32 * 0.1 - 4.0)).collect();
    let kinds = [
        Adjustment::default(),
        Adjustment { bias: &bias, allowed: None },
        Adjustment { bias: &[], allowed: Some(&words) },
        Adjustment { bias: &bias[3..9], allowed: Some(&words) },
    ];
    let mut params = Vec::new();
    for temperature in [0.0, 1.0, 2.0] {
        for (position, top_k) in [(0, 0), (1, 5), (2, 0), (3, 50)] {
            params.push(SampleParams {
                temperature,
                position,
                top_k,
                wants_logprob: 1,
                num_top_logprobs: 3,
                ..PARAMS
            });
        }
    }
    let adjustments: Vec<_> = (0..params.len()).map(|row| kinds[(row + row / 4) % 4]).collect();
    check_adjusted(&noise(11, params.len() * VOCAB), VOCAB, &params, &adjustments);
}
