use super::*;
use crate::testing::{assert_close, cpus, noise};

#[test]
fn philox_gives_the_published_vectors() {
    assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(
        philox4x32([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    assert_eq!(
        philox4x32(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0]
        ),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

/// Draws from the whole distribution.
const ALL: Sampling = Sampling { temperature: 1.0, min_p: 0.0, top_k: 0, top_p: 1.0, key: key(0) };

const fn key(position: u32) -> DrawKey {
    DrawKey { seed: 42, choice: 1, position }
}

/// Shares of `num` draws.
fn shares(cpu: &Cpu, logits: &[f32], temperature: f32, top_p: f32, num: u32) -> Vec<f32> {
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..num {
        let sampling = Sampling { temperature, top_p, key: key(position), ..ALL };
        counts[sample(cpu, logits, &sampling) as usize] += 1;
    }
    counts.into_iter().map(|count| count as f32 / num as f32).collect()
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let sampling = Sampling { temperature: 0.0, ..ALL };
    for cpu in &cpus() {
        assert_eq!(sample(cpu, &[1.0, 5.0, 5.0, f32::NAN], &sampling), 1);
        assert_eq!(argmax(cpu, &[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(argmax(cpu, &[f32::NAN, f32::NEG_INFINITY]), 1);
        let mut logits = vec![-1.0; 100];
        logits[77] = f32::NAN;
        (logits[61], logits[93]) = (3.0, 3.0);
        assert_eq!(argmax(cpu, &logits), 61);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.5_f32, 0.25, 0.15, 0.1];
    let logits = probabilities.map(|p| p.ln() * 0.7 + 3.0);
    for cpu in cpus() {
        let all = shares(&cpu, &logits, 0.7, 1.0, 20_000);
        assert_close(&all, &probabilities, 0.03, "all");
        let nucleus = shares(&cpu, &logits, 0.7, 0.7, 20_000);
        assert_close(&nucleus, &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0], 0.03, "nucleus");
        let one = shares(&cpu, &logits, 0.7, 0.01, 100);
        assert_eq!(one, [1.0, 0.0, 0.0, 0.0], "the most likely token is always in");
    }
}

#[test]
fn a_wide_nucleus_is_found_and_impossible_tokens_are_not() {
    // 5,000 equal tokens, then some that cannot be.
    let mut logits = vec![0.0; 5000];
    logits.extend([f32::NEG_INFINITY; 100]);
    for cpu in cpus() {
        for (top_p, end) in [(0.9, 4500), (1.0, 5000)] {
            let drawn: Vec<u32> = (0..2000)
                .map(|position| {
                    let sampling = Sampling { top_p, key: key(position), ..ALL };
                    sample(&cpu, &logits, &sampling)
                })
                .collect();
            assert!(drawn.iter().all(|&token| token < end), "{top_p}");
            assert!(drawn.iter().any(|&token| token > end - 50), "{top_p}: the last are drawn too");
        }
    }
}

#[test]
fn a_draw_depends_on_seed_choice_and_position_and_on_nothing_else() {
    let logits = noise(5, 3000);
    let draw = |cpu: &Cpu, key: DrawKey, top_p: f32| {
        sample(cpu, &logits, &Sampling { temperature: 0.9, top_p, key, ..ALL })
    };
    let base = DrawKey { seed: 1 << 40, choice: 0, position: 7 };
    let others = [
        DrawKey { seed: 1 << 41, ..base },
        DrawKey { choice: 1, ..base },
        DrawKey { position: 8, ..base },
    ];
    let cpus = cpus();
    for top_p in [1.0, 0.8] {
        for position in 0..200 {
            let key = DrawKey { position, ..base };
            let expected = draw(&cpus[0], key, top_p);
            assert!(cpus.iter().all(|cpu| draw(cpu, key, top_p) == expected));
        }
    }
    assert!(others.iter().all(|other| other.uniform() != base.uniform()));
}

#[test]
fn log_probabilities_are_those_of_the_formula() {
    let logits: Vec<f32> = noise(6, 1000).into_iter().map(|x| x * 8.0).collect();
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let expected: Vec<f32> = logits.iter().map(|&x| (f64::from(x) - total.ln()) as f32).collect();
    let mut best: Vec<u32> = (0..1000).collect();
    best.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    for cpu in cpus() {
        let logprobs = LogProbs::new(&cpu, &logits);
        let actual: Vec<f32> = (0..1000).map(|token| logprobs.get(token)).collect();
        assert_close(&actual, &expected, 1e-6, "log probabilities");
        let top = logprobs.top(5);
        assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), best[..5]);
        assert!(top.iter().all(|&(token, logprob)| logprob == logprobs.get(token)));
    }
}

/// What each of `num` draws gave.
fn drawn(cpu: &Cpu, logits: &[f32], sampling: &Sampling, num: u32) -> Vec<u32> {
    let draw = |position| sample(cpu, logits, &Sampling { key: key(position), ..*sampling });
    (0..num).map(draw).collect()
}

#[test]
fn unlikely_tokens_are_ruled_out() {
    // Probabilities 0.4, 0.3, 0.3, ... of the largest: exp(logit).
    let logits: Vec<f32> = [1.0_f32, 0.5, 0.5, 0.25, 0.1].map(f32::ln).into();
    for cpu in cpus() {
        let most = |sampling: Sampling| drawn(&cpu, &logits, &sampling, 2000).into_iter().max();
        assert_eq!(most(ALL), Some(4));
        assert_eq!(most(Sampling { min_p: 0.2, ..ALL }), Some(3));
        assert_eq!(most(Sampling { min_p: 0.3, ..ALL }), Some(2));
        assert_eq!(most(Sampling { top_k: 4, ..ALL }), Some(3));
        // Of two alike, the lower id.
        assert_eq!(most(Sampling { top_k: 2, ..ALL }), Some(1));
        assert_eq!(most(Sampling { top_k: 1, ..ALL }), Some(0));
        // The nucleus is a share of what is left: 0.75 of 1.5 is within the second token, 0.75 of 2.35 within the third.
        assert_eq!(most(Sampling { top_k: 2, top_p: 0.7, ..ALL }), Some(1));
        assert_eq!(most(Sampling { top_k: 2, top_p: 0.6, ..ALL }), Some(0));
        assert_eq!(most(Sampling { min_p: 0.01, top_p: 0.6, ..ALL }), Some(1));
    }
}

#[test]
fn rules_that_rule_out_nothing_change_no_draw() {
    let logits = noise(9, 3000);
    for cpu in cpus() {
        for top_p in [1.0, 0.7] {
            let plain = drawn(&cpu, &logits, &Sampling { top_p, ..ALL }, 100);
            let ruled = Sampling { top_p, top_k: 3000, ..ALL };
            assert_eq!(drawn(&cpu, &logits, &ruled, 100), plain);
        }
    }
}

#[test]
fn an_adjustment_adds_and_masks() {
    let mut logits = noise(4, 70);
    let before = logits.clone();
    let allowed = [u32::MAX, 0, 0b10_0001];
    let adjustment =
        Adjustment { bias: &[(3, -2.5), (64, 1.0), (69, -100.0)], allowed: Some(&allowed) };
    assert!(!adjustment.is_empty() && Adjustment::default().is_empty());
    adjustment.apply(&mut logits);
    for (token, (after, before)) in logits.iter().zip(before).enumerate() {
        let expected = match token {
            3 => before - 2.5,
            64 => before + 1.0,
            69 => before - 100.0,
            0..32 => before,
            _ => f32::NEG_INFINITY,
        };
        assert_eq!(*after, expected, "token {token}");
    }
    for cpu in cpus() {
        assert!(drawn(&cpu, &logits, &ALL, 500).iter().all(|&token| token < 32 || token == 64));
    }
}
