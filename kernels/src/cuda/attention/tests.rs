use half::bf16;

use super::*;
use crate::attention::{KeyRows, Probabilities, SparseAttention, sparse_attention};
use crate::cuda::Variant;
use crate::cuda::compressor::Entries;
use crate::cuda::indexer::{SelectInput, select};
use crate::cuda::kv_cache::LayerKind;
use crate::cuda::kv_cache::testing::{Case, gather};
use crate::cuda::testing::{cpu, gpu, gpus, upload};
use crate::testing::{assert_bits, assert_close, noise};

const TOPK: usize = 5;
const INDEX_HEADS: usize = 2;

/// What all runs of a case share.
struct Inputs {
    num_heads: usize,
    q: Vec<f32>,
    kv: Vec<f32>,
    index_q: Vec<f32>,
    weights: Vec<f32>,
    sinks: Vec<f32>,
}

struct Results {
    out: Vec<f32>,
    chosen: Vec<Vec<u32>>,
    cache: Cache,
}

impl Inputs {
    fn new(gpu: &Gpu, case: &Case, num_heads: usize) -> Self {
        let (n, width) = (case.num_tokens(), num_heads * case.shape.head_dim);
        let q: Vec<f32> = noise(90, n * width).iter().map(|x| 2.0 * x).collect();
        Self {
            num_heads,
            q: upload(gpu, &q, width).1,
            kv: case.window_rows(gpu.variant(), 91),
            index_q: noise(92, n * INDEX_HEADS * case.shape.index_head_dim),
            weights: noise(93, n * INDEX_HEADS),
            sinks: noise(94, num_heads),
        }
    }

    /// Everything in steps of `len` tokens.
    fn run(&self, gpu: &Gpu, case: &Case, len: usize) -> Results {
        let shape = &case.shape;
        let (dim, width) = (shape.head_dim, self.num_heads * shape.head_dim);
        let mut cache = Cache::new(gpu, shape);
        let mut selection = Selection::new(gpu);
        let mut results = vec![0.0; self.q.len()];
        let mut chosen = vec![Vec::new(); case.num_tokens()];
        let has_entries = shape.kind != LayerKind::SlidingWindow;
        let chooses = matches!(shape.kind, LayerKind::Csa { .. });
        for cut in case.cut(gpu, len) {
            // A bound, which may be above what any row sees.
            let max_visible = if has_entries { case.longest() / case.ratio() } else { 0 };
            if has_entries {
                case.compressor(Entries::Main, 50).run(gpu, &cut, &mut cache);
            }
            if chooses {
                case.compressor(Entries::IndexKeys, 60).run(gpu, &cut, &mut cache);
                let index_width = INDEX_HEADS * shape.index_head_dim;
                let tensor = |data, cols| upload(gpu, &gather(data, cols, &cut.tokens), cols).0;
                let input = SelectInput {
                    q: &tensor(&self.index_q, index_width),
                    weights: &tensor(&self.weights, INDEX_HEADS),
                    num_heads: INDEX_HEADS,
                    topk: TOPK,
                    max_visible,
                };
                select(gpu, &cut.step, &input, &cache, &mut selection);
                for (&token, row) in cut.tokens.iter().zip(selection.download()) {
                    chosen[token] = row;
                }
            }
            let input = AttendInput {
                q: &upload(gpu, &gather(&self.q, width, &cut.tokens), width).0,
                kv: &upload(gpu, &gather(&self.kv, dim, &cut.tokens), dim).0,
                sinks: &gpu.upload(&self.sinks),
                selection: chooses.then_some(&selection),
                max_visible,
            };
            let mut out = Tensor::new(gpu, gpu.act(), width);
            attend(gpu, &cut.step, &input, &mut cache, &mut out);
            for (&token, row) in cut.tokens.iter().zip(out.download().chunks(width)) {
                results[token * width..(token + 1) * width].copy_from_slice(row);
            }
        }
        assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
        Results { out: results, chosen, cache }
    }

    /// What the CPU makes of the entries that `results` found.
    fn expected(&self, gpu: &Gpu, case: &Case, results: &Results) -> Vec<f32> {
        let shape = &case.shape;
        let (dim, width) = (shape.head_dim, self.num_heads * shape.head_dim);
        let mut out = vec![0.0; self.q.len()];
        let entries: Vec<Vec<Vec<f32>>> = match shape.kind {
            LayerKind::SlidingWindow => vec![Vec::new(); case.lens.len()],
            LayerKind::Csa { .. } | LayerKind::Hca { .. } => (0..case.lens.len())
                .map(|sequence| case.entries(&results.cache, Entries::Main, sequence))
                .collect(),
        };
        for (token, (sequence, position)) in case.places().into_iter().enumerate() {
            let oldest = (position + 1).saturating_sub(shape.sliding_window);
            let window = token - (position - oldest)..=token;
            let mut keys: Vec<&[f32]> = window.map(|t| &self.kv[t * dim..(t + 1) * dim]).collect();
            let entries = &entries[sequence];
            match shape.kind {
                LayerKind::SlidingWindow => {}
                LayerKind::Csa { .. } => {
                    keys.extend(
                        results.chosen[token].iter().map(|&e| entries[e as usize].as_slice()),
                    );
                }
                LayerKind::Hca { ratio } => {
                    keys.extend(entries[..(position + 1) / ratio].iter().map(Vec::as_slice));
                }
            }
            let halves: Vec<Vec<bf16>> =
                keys.iter().map(|k| k.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
            let halves: Vec<&[bf16]> = halves.iter().map(Vec::as_slice).collect();
            let (keys, probabilities) = match gpu.variant() {
                Variant::Exact => (KeyRows::F32(&keys), Probabilities::Exact),
                Variant::Official => (KeyRows::Bf16(&halves), Probabilities::Bf16),
            };
            let args = SparseAttention {
                q: &self.q[token * width..(token + 1) * width],
                sink: &self.sinks,
                keys,
                softmax_scale: (dim as f64).sqrt().recip() as f32,
                probabilities,
            };
            sparse_attention(&cpu(), &args, &mut out[token * width..(token + 1) * width]);
        }
        out
    }
}

fn check(gpu: &Gpu, case: &Case, num_heads: usize) {
    let inputs = Inputs::new(gpu, case, num_heads);
    let whole = inputs.run(gpu, case, case.num_tokens());
    let expected = inputs.expected(gpu, case, &whole);
    let what = format!("{:?} {} {num_heads} heads", case.shape.kind, case.shape.head_dim);
    assert_close(&whole.out, &expected, gpu.tolerance(), &what);
    for len in [7, 1] {
        let other = inputs.run(gpu, case, len);
        assert_eq!(other.chosen, whole.chosen, "{what} cut to {len}");
        assert_bits(&other.out, &whole.out, &format!("{what} cut to {len}"));
    }
}

#[test]
fn it_agrees_with_the_cpu_however_it_is_cut() {
    let csa = |ratio| LayerKind::Csa { ratio };
    let hca = |ratio| LayerKind::Hca { ratio };
    for gpu in gpus() {
        for (kind, dims, window, num_heads, lens) in [
            (LayerKind::SlidingWindow, (32, 8), 16, 3, &[25, 17][..]),
            (LayerKind::SlidingWindow, (48, 16), 1, 2, &[9]),
            (csa(4), (32, 8), 16, 4, &[27, 10]),
            (csa(3), (128, 32), 8, 2, &[30]),
            (hca(16), (128, 32), 70, 2, &[75]),
            (hca(128), (32, 8), 128, 1, &[130]),
            (hca(4), (512, 64), 16, 17, &[8]),
        ] {
            check(&gpu, &Case::new(kind, dims, window, lens), num_heads);
        }
    }
}

#[test]
fn a_long_list_is_cut_into_segments() {
    let gpu = gpu(Variant::Official);
    let (num_heads, position) = (20, 1500);
    for dims in [(64, 16), (40, 10)] {
        let case = Case::new(LayerKind::Hca { ratio: 1 }, dims, 16, &[position + 1]);
        let dim = dims.0;
        let mut cache = Cache::new(&gpu, &case.shape);
        cache.entries.randomize(10);
        cache.window.randomize(12);
        let (q, q_data) = upload(&gpu, &noise(14, num_heads * dim), num_heads * dim);
        let own = cache.read_row(&cache.window, 0);
        let sinks = gpu.upload(&noise(15, num_heads));
        let input = AttendInput {
            q: &q,
            kv: &upload(&gpu, &own, dim).0,
            sinks: &sinks,
            selection: None,
            max_visible: position + 1,
        };
        let step = case.step_at(&gpu, position);
        let attend = |tile, num_segments| {
            let out = Tensor::upload(&gpu, gpu.act(), &vec![0.0; num_heads * dim], num_heads * dim);
            let args = args(&step, &input, &cache, &out);
            attend_tiles(&gpu, 1, Plan { tile, num_segments }, args);
            assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
            out.download()
        };
        let narrow = attend(NARROW, 2);
        assert_bits(&attend(WIDE, 2), &narrow, "tile");
        assert_bits(&attend(NARROW, 5), &narrow, "segments that are empty");
        let ring = |p: usize| cache.read_row(&cache.window, p % case.shape.window_rows);
        let mut keys: Vec<Vec<f32>> = (position - 15..position).map(ring).collect();
        keys.push(own.clone());
        keys.extend(case.entries(&cache, Entries::Main, 0));
        let keys: Vec<Vec<bf16>> =
            keys.iter().map(|key| key.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
        let keys: Vec<&[bf16]> = keys.iter().map(Vec::as_slice).collect();
        let args = SparseAttention {
            q: &q_data,
            sink: &noise(15, num_heads),
            keys: KeyRows::Bf16(&keys),
            softmax_scale: (dim as f64).sqrt().recip() as f32,
            probabilities: Probabilities::Bf16,
        };
        let mut expected = vec![0.0; num_heads * dim];
        sparse_attention(&cpu(), &args, &mut expected);
        assert_close(&narrow, &expected, gpu.tolerance(), "out");
    }
}
