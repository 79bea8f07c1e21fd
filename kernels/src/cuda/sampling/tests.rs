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
    top_p: 1.0,
    num_top_logprobs: 0,
    wants_logprob: 0,
};

fn expected(logits: &[f32], params: &SampleParams) -> u32 {
    let key = DrawKey {
        seed: u64::from(params.seed_hi) << 32 | u64::from(params.seed_lo),
        choice: params.choice,
        position: params.position,
    };
    let SampleParams { temperature, top_p, .. } = *params;
    sampling::sample(&cpu(), logits, &Sampling { temperature, top_p, key })
}

fn check(logits: &[f32], vocab: usize, params: &[SampleParams]) {
    let gpu = gpu(Variant::Exact);
    let tensor = Tensor::upload(&gpu, Elem::F32, logits, vocab);
    let sampled = sample(&gpu, &tensor, params);
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    for ((sampled, params), logits) in sampled.iter().zip(params).zip(logits.chunks(vocab)) {
        assert_eq!(sampled.token, expected(logits, params), "{params:?}");
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
    let all = sample(&gpu, &Tensor::upload(&gpu, Elem::F32, &logits, 1000), &params);
    for (i, row) in logits.chunks(1000).enumerate() {
        let alone = sample(&gpu, &Tensor::upload(&gpu, Elem::F32, row, 1000), &params[i..=i]);
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
    assert_eq!(sample(&gpu, &tensor, &[params])[0].token as usize, best.unwrap());
    for position in 0..20 {
        let params = SampleParams { position, ..PARAMS };
        let token = sample(&gpu, &tensor, &[params])[0].token;
        assert!(token != 4 && token != 17);
    }
}
