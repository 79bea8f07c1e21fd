//! The indexer's choice, and attention, of one token per sequence.

use switchyard_kernels::cuda::attention::{AttendInput, attend};
use switchyard_kernels::cuda::indexer::{SelectInput, Selection, select};
use switchyard_kernels::cuda::kv_cache::{
    Cache, CacheShape, LayerKind, entry_num_bytes, key_num_bytes,
};
use switchyard_kernels::cuda::{Row, Step, Tensor};
use switchyard_moe::capacity::{entries_per_block, num_blocks, window_rows};

use super::super::cache_noise;
use super::{Bench, Work};

/// Sequences at a position.
struct Case {
    batch: usize,
    context: usize,
    step: Step,
    cache: Cache,
    max_visible: usize,
}

impl Bench<'_> {
    pub(super) fn attention(&mut self) {
        let options = self.options;
        for &context in &options.contexts {
            for &batch in &options.batches {
                self.sparse(batch, context);
                self.dense(batch, context);
            }
        }
    }

    /// A layer whose entries an indexer chooses.
    fn sparse(&mut self, batch: usize, context: usize) {
        let shape = format!("csa {batch} at {context}");
        let names = ["select", "attend"].map(|op| self.wanted(op, &shape));
        if names.iter().all(Option::is_none) {
            return;
        }
        let c = &self.shape.config;
        let gpu = self.gpu;
        let case = self.case(LayerKind::Csa { ratio: 4 }, batch, context);
        let (num_heads, dim) = (c.index_n_heads, c.index_head_dim);
        let q = self.activations(batch, num_heads * dim);
        let weights = self.activations(batch, num_heads);
        let mut selection = Selection::new(gpu);
        let Case { step, cache, max_visible, .. } = &case;
        let input = SelectInput {
            q: &q,
            weights: &weights,
            num_heads,
            topk: c.index_topk,
            max_visible: *max_visible,
        };
        let must_score = *max_visible > c.index_topk;
        let num_keys = if must_score { batch * max_visible } else { 0 };
        let work = Work {
            num_bytes: num_keys * key_num_bytes(gpu.variant(), dim),
            num_flops: 2 * num_keys * num_heads * dim,
        };
        let [select_name, attend_name] = names;
        select(gpu, step, &input, cache, &mut selection);
        if let Some(name) = select_name {
            self.time(name, work, |_| select(gpu, step, &input, cache, &mut selection));
        }
        if let Some(name) = attend_name {
            let chosen = must_score.then_some(&selection);
            self.attend(name, case, chosen);
        }
    }

    /// A layer that attends all entries.
    fn dense(&mut self, batch: usize, context: usize) {
        let shape = format!("hca {batch} at {context}");
        let Some(name) = self.wanted("attend", &shape) else { return };
        let case = self.case(LayerKind::Hca { ratio: 128 }, batch, context);
        self.attend(name, case, None);
    }

    fn attend(&mut self, name: (String, String), case: Case, selection: Option<&Selection>) {
        let c = &self.shape.config;
        let gpu = self.gpu;
        let Case { batch, context, step, mut cache, max_visible } = case;
        let (num_heads, dim) = (c.num_attention_heads, c.head_dim);
        let (q, kv) = (self.activations(batch, num_heads * dim), self.activations(batch, dim));
        let sinks = self.floats(num_heads, 0.0);
        let mut out = Tensor::new(gpu, gpu.act(), num_heads * dim);
        let entries = match selection {
            Some(_) => max_visible.min(c.index_topk),
            None => max_visible,
        };
        let num_keys = batch * (entries + c.sliding_window.min(context + 1));
        let entry_bytes = entry_num_bytes(gpu.variant(), dim, c.qk_rope_head_dim);
        let work = Work {
            num_bytes: num_keys * entry_bytes + 2 * batch * num_heads * dim * q.elem().num_bytes(),
            num_flops: 2 * 2 * num_keys * num_heads * dim,
        };
        let input = AttendInput { q: &q, kv: &kv, sinks: &sinks, selection, max_visible };
        self.time(name, work, |_| attend(gpu, &step, &input, &mut cache, &mut out));
    }

    fn case(&self, kind: LayerKind, batch: usize, context: usize) -> Case {
        let c = &self.shape.config;
        let ratio = kind.ratio().unwrap_or(1);
        let per_sequence = num_blocks(context + 1);
        let shape = CacheShape {
            kind,
            head_dim: c.head_dim,
            rotary_dim: c.qk_rope_head_dim,
            index_head_dim: c.index_head_dim,
            sliding_window: c.sliding_window,
            window_rows: window_rows(c),
            tail_rows: 1,
            num_blocks: batch * per_sequence,
            entries_per_block: entries_per_block(ratio),
            num_slots: batch,
        };
        let mut cache = Cache::new(self.gpu, &shape);
        let [codes, scales] = cache_noise().map(|noise| self.gpu.upload(&noise));
        cache.fill(&codes, &scales);
        let row = |sequence: usize| Row {
            position: context as u32,
            slot: sequence as u32,
            first_row: sequence as u32,
            first_position: context as u32,
            table: (sequence * per_sequence) as u32,
        };
        let rows: Vec<_> = (0..batch).map(row).collect();
        let blocks: Vec<_> = (0..(batch * per_sequence) as u32).collect();
        let mut step = Step::new(self.gpu);
        step.set(self.gpu, &rows, &blocks);
        Case { batch, context, step, cache, max_visible: (context + 1) / ratio }
    }
}
