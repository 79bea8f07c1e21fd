use super::*;
use crate::compressor::{PoolRow, compress_pool};
use crate::cuda::Variant;
use crate::cuda::kv_cache::testing::{Case, Compressor, NORM_EPS};
use crate::cuda::testing::{cpu, gpus};
use crate::hadamard::hadamard;
use crate::math::sin_cos;
use crate::norm::rms_norm;
use crate::quant::{KV_BLOCK, fp4_round_trip, fp8_round_trip, round_bf16};
use crate::testing::{assert_bits, assert_close};

/// One entry as the CPU computes it; `first_token` is its sequence's.
fn expected(gpu: &Gpu, case: &Case, c: &Compressor, first_token: usize, entry: usize) -> Vec<f32> {
    let cpu = cpu();
    let official = gpu.variant() == Variant::Official;
    let cast = |x: &mut [f32]| {
        if official {
            round_bf16(&cpu, x);
        }
    };
    let (ratio, dim) = (case.ratio(), c.norm.len());
    let overlaps = c.width == 2 * dim;
    let first = (entry * ratio).saturating_sub(if overlaps { ratio } else { 0 });
    let rows: Vec<(Vec<f32>, Vec<f32>)> = (first..(entry + 1) * ratio)
        .map(|position| {
            let column = if overlaps && position >= entry * ratio { dim } else { 0 };
            let at = (first_token + position) * c.width + column;
            let ape = position % ratio * c.width + column;
            let score = c.score[at..at + dim].iter().zip(&c.ape[ape..ape + dim]);
            (c.kv[at..at + dim].to_vec(), score.map(|(s, a)| s + a).collect())
        })
        .collect();
    let pool: Vec<_> = rows.iter().map(|(kv, score)| PoolRow { kv, score }).collect();
    let mut out = vec![0.0; dim];
    compress_pool(&cpu, &pool, &mut out);
    cast(&mut out);
    rms_norm(&cpu, &mut out, &c.norm, NORM_EPS);
    cast(&mut out);
    let num_plain = dim - case.shape.rotary_dim;
    for (pair, f) in out[num_plain..].chunks_mut(2).zip(&c.inv_freq) {
        let (sin, cos) = sin_cos(f64::from((entry * ratio) as f32 * f));
        let (sin, cos) = (sin as f32, cos as f32);
        let [a, b] = [pair[0], pair[1]];
        pair.copy_from_slice(&[a * cos - b * sin, a * sin + b * cos]);
    }
    cast(&mut out);
    match c.entries {
        _ if !official => {}
        Entries::Main => fp8_round_trip(&cpu, &mut out[..num_plain], KV_BLOCK),
        Entries::IndexKeys => {
            hadamard(&cpu, &mut out, dim);
            cast(&mut out);
            fp4_round_trip(&cpu, &mut out);
        }
    }
    out
}

fn check(gpu: &Gpu, case: &Case, entries: Entries) {
    let c = case.compressor(entries, 40);
    let mut previous: Option<Vec<Vec<f32>>> = None;
    for len in [case.num_tokens(), 7, 1] {
        let mut cache = Cache::new(gpu, &case.shape);
        for cut in case.cut(gpu, len) {
            c.run(gpu, &cut, &mut cache);
        }
        assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
        let mut all = Vec::new();
        for (sequence, &num_tokens) in case.lens.iter().enumerate() {
            let first_token: usize = case.lens[..sequence].iter().sum();
            let actual = case.entries(&cache, entries, sequence);
            assert_eq!(actual.len(), num_tokens / case.ratio());
            for (entry, actual) in actual.iter().enumerate() {
                let expected = expected(gpu, case, &c, first_token, entry);
                // Codes are the same unless a number is just between two of them.
                assert_close(actual, &expected, 2e-5, &format!("entry {entry} of {sequence}"));
            }
            all.extend(actual);
        }
        for (a, b) in all.iter().zip(previous.as_ref().unwrap_or(&all)) {
            assert_bits(a, b, &format!("cut to {len}"));
        }
        previous = Some(all);
    }
}

#[test]
fn entries_agree_with_the_cpu_however_they_are_cut() {
    let csa = |ratio| LayerKind::Csa { ratio };
    let hca = |ratio| LayerKind::Hca { ratio };
    for gpu in gpus() {
        for (kind, dims, lens) in [
            (csa(4), (32, 8), &[37, 16][..]),
            (csa(3), (48, 16), &[140]),
            (csa(4), (512, 64), &[21]),
            (hca(16), (128, 32), &[50, 31]),
            (hca(128), (32, 8), &[300, 129]),
        ] {
            let case = Case::new(kind, dims, 16, lens);
            check(&gpu, &case, Entries::Main);
            if matches!(kind, LayerKind::Csa { .. }) {
                check(&gpu, &case, Entries::IndexKeys);
            }
        }
    }
}

#[test]
fn a_cache_has_the_bytes_it_should() {
    let kind = LayerKind::Csa { ratio: 4 };
    let shape = Case::new(kind, (512, 64), 128, &[128]).shape;
    let [exact, official] = gpus();
    let tails = 2 * shape.tail_rows * (1024 + 256) * size_of::<f32>();
    let official = Cache::new(&official, &shape).num_bytes() - tails;
    assert_eq!(official, 131 * 584 + 32 * (584 + 68));
    let exact = Cache::new(&exact, &shape).num_bytes() - tails;
    assert_eq!(exact, 131 * 2048 + 32 * (2048 + 512));
}
