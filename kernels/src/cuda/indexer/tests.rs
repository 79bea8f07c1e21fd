use super::*;
use crate::attention::KeyRows;
use crate::cuda::Variant;
use crate::cuda::compressor::Entries;
use crate::cuda::kv_cache::testing::{Case, gather};
use crate::cuda::testing::{cpu, gpu, gpus, upload};
use crate::indexer::{IndexerQuery, indexer_scores};
use crate::quant::{fp4_round_trip, round_bf16};
use crate::testing::{assert_close, noise};

/// Queries of all tokens as a variant compares them.
fn queries(gpu: &Gpu, num_tokens: usize, num_heads: usize, dim: usize) -> Vec<f32> {
    let mut q = noise(70, num_tokens * num_heads * dim);
    if gpu.variant() == Variant::Official {
        q.chunks_mut(dim).for_each(|head| fp4_round_trip(&cpu(), head));
        round_bf16(&cpu(), &mut q);
    }
    q
}

/// Every token's choice, computed in steps of `len` tokens.
fn choose(
    gpu: &Gpu,
    case: &Case,
    (num_heads, topk): (usize, usize),
    q: &[f32],
    len: usize,
) -> (Vec<Vec<u32>>, Cache) {
    let compressor = case.compressor(Entries::IndexKeys, 60);
    let weights = noise(80, case.num_tokens() * num_heads);
    let mut cache = Cache::new(gpu, &case.shape);
    let mut selection = Selection::new(gpu);
    let mut chosen = vec![Vec::new(); case.num_tokens()];
    let width = num_heads * case.shape.index_head_dim;
    for cut in case.cut(gpu, len) {
        compressor.run(gpu, &cut, &mut cache);
        let (q, _) = upload(gpu, &gather(q, width, &cut.tokens), width);
        let (weights, _) = upload(gpu, &gather(&weights, num_heads, &cut.tokens), num_heads);
        let max_visible = case.longest() / case.ratio();
        let input = SelectInput { q: &q, weights: &weights, num_heads, topk, max_visible };
        select(gpu, &cut.step, &input, &cache, &mut selection);
        for (&token, row) in cut.tokens.iter().zip(selection.download()) {
            chosen[token] = row;
        }
    }
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    (chosen, cache)
}

/// Whether a choice is one of the best, as far as rounding can tell.
fn check_choice(chosen: &[u32], scores: &[f32], topk: usize, what: &str) {
    assert!(chosen.is_sorted(), "{what}: {chosen:?}");
    assert_eq!(chosen.len(), topk.min(scores.len()), "{what}");
    let scale = scores.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    let is_chosen = |i: &usize| chosen.contains(&(*i as u32));
    let worst = chosen.iter().map(|&i| scores[i as usize]).fold(f32::INFINITY, f32::min);
    let best_left = (0..scores.len()).filter(|i| !is_chosen(i)).map(|i| scores[i]);
    let best_left = best_left.fold(f32::NEG_INFINITY, f32::max);
    assert!(best_left <= worst + 1e-5 * scale, "{what}: {worst} was chosen, {best_left} was not");
}

fn check(gpu: &Gpu, case: &Case, num_heads: usize, topk: usize) {
    let dim = case.shape.index_head_dim;
    let ratio = case.ratio();
    let q = queries(gpu, case.num_tokens(), num_heads, dim);
    let (chosen, cache) = choose(gpu, case, (num_heads, topk), &q, case.num_tokens());
    let weights = upload(gpu, &noise(80, case.num_tokens() * num_heads), num_heads).1;
    let scale = (dim as f64 * num_heads as f64).sqrt().recip() as f32;
    for (token, (sequence, position)) in case.places().into_iter().enumerate() {
        let keys = case.entries(&cache, Entries::IndexKeys, sequence);
        let keys: Vec<&[f32]> = keys[..(position + 1) / ratio].iter().map(Vec::as_slice).collect();
        let weights: Vec<f32> =
            weights[token * num_heads..][..num_heads].iter().map(|w| w * scale).collect();
        let q = &q[token * num_heads * dim..][..num_heads * dim];
        let mut scores = vec![0.0; keys.len()];
        let query = IndexerQuery { q, weights: &weights };
        indexer_scores(&cpu(), &query, KeyRows::F32(&keys), &mut scores);
        check_choice(&chosen[token], &scores, topk, &format!("{position} of {sequence}"));
    }
    for len in [7, 1] {
        let (other, _) = choose(gpu, case, (num_heads, topk), &q, len);
        assert_eq!(other, chosen, "cut to {len}");
    }
}

#[test]
fn the_choice_is_that_of_the_cpu_however_it_is_cut() {
    for gpu in gpus() {
        for (ratio, dims, num_heads, topk, lens) in [
            (4, (32, 8), 4, 5, &[60, 33][..]),
            (3, (64, 16), 3, 8, &[90]),
            (1, (16, 8), 2, 70, &[160]),
            (4, (128, 32), 20, 3, &[50]),
        ] {
            let case = Case::new(LayerKind::Csa { ratio }, dims, 16, lens);
            check(&gpu, &case, num_heads, topk);
        }
    }
}

#[test]
fn ties_go_to_the_lower_entry() {
    for gpu in gpus() {
        let case = Case::new(LayerKind::Csa { ratio: 1 }, (16, 8), 16, &[150]);
        let q = vec![0.0; 150 * 16];
        let (chosen, _) = choose(&gpu, &case, (1, 40), &q, 150);
        assert!(chosen.iter().all(|row| row.iter().enumerate().all(|(i, &e)| i == e as usize)));
        assert_eq!(chosen[149].len(), 40);
    }
}

#[test]
fn many_entries_are_scored_by_many_blocks() {
    let gpu = gpu(Variant::Official);
    let (num_heads, topk, position) = (17, 300, 4500);
    let case = Case::new(LayerKind::Csa { ratio: 1 }, (128, 32), 16, &[position + 1]);
    let mut cache = Cache::new(&gpu, &case.shape);
    cache.index_keys.randomize(30);
    let (q, q_data) = upload(&gpu, &queries(&gpu, 1, num_heads, 128), num_heads * 128);
    let (weights, weight_data) = upload(&gpu, &noise(81, num_heads), num_heads);
    let max_visible = position + 20;
    let input = SelectInput { q: &q, weights: &weights, num_heads, topk, max_visible };
    let mut selection = Selection::new(&gpu);
    select(&gpu, &case.step_at(&gpu, position), &input, &cache, &mut selection);
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    let keys = case.entries(&cache, Entries::IndexKeys, 0);
    let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
    let scale = (128.0 * num_heads as f64).sqrt().recip() as f32;
    let weights: Vec<f32> = weight_data.iter().map(|w| w * scale).collect();
    let mut scores = vec![0.0; keys.len()];
    let query = IndexerQuery { q: &q_data, weights: &weights };
    indexer_scores(&cpu(), &query, KeyRows::F32(&keys), &mut scores);
    check_choice(&selection.download()[0], &scores, topk, "long");
    let actual = selection.scores.read(0, scores.len());
    assert_close(&actual, &scores, 1e-5, "scores");
}
