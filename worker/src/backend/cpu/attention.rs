//! The indexer's choice, and attention over window and entries.

use switchyard_kernels::attention::{Probabilities, SparseAttention, sparse_attention};
use switchyard_kernels::gate::topk;
use switchyard_kernels::indexer::{IndexerQuery, indexer_scores};

use super::cache::{Cell, CpuCache, Numbers, Pools, entry_cell, read_row, write_row};
use super::{CpuBackend, CpuSelection, CpuTensor};
use crate::backend::{AttendInput, Numerics, SelectInput};
use crate::kv_cache::{LayerLayout, Span};

/// What all rows of a call share.
struct Attention<'a, T> {
    input: &'a AttendInput<'a, CpuBackend>,
    pools: &'a Pools<T>,
    layout: &'a LayerLayout,
    /// The step's own window rows in the cache's format, `[rows, head_dim]`.
    kv: &'a [T],
    probabilities: Probabilities,
}

/// A row of a call.
#[derive(Clone, Copy)]
struct Query<'a> {
    span: &'a Span<'a>,
    row: usize,
    position: usize,
}

impl CpuBackend {
    pub(super) fn select_entries(
        &mut self,
        input: &SelectInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &CpuCache,
        selection: &mut CpuSelection,
    ) {
        match &cache.numbers {
            Numbers::F32(pools) => self.select_in(input, spans, (cache, pools), selection),
            Numbers::Bf16(pools) => self.select_in(input, spans, (cache, pools), selection),
        }
    }

    fn select_in<T: Cell>(
        &self,
        input: &SelectInput<'_, Self>,
        spans: &[Span<'_>],
        (cache, pools): (&CpuCache, &Pools<T>),
        selection: &mut CpuSelection,
    ) {
        let c = &self.config;
        let ratio = cache.ratio();
        let scale = (c.index_head_dim as f64 * c.index_n_heads as f64).sqrt().recip() as f32;
        let queries = queries(spans);
        selection.clear();
        selection.resize_with(queries.len(), Vec::new);
        self.cpu.for_each_chunk(selection, 1, |i, chosen| {
            let Query { span, row, position } = queries[i];
            let visible = (position + 1) / ratio;
            chosen[0] = if visible <= c.index_topk {
                (0..visible as u32).collect()
            } else {
                let keys: Vec<_> = (0..visible)
                    .map(|entry| {
                        let cell = entry_cell(span, ratio, entry);
                        read_row(&pools.index_keys, cell, c.index_head_dim)
                    })
                    .collect();
                let weights: Vec<_> = input.weights.row(row).iter().map(|w| w * scale).collect();
                let query = IndexerQuery { q: input.q.row(row), weights: &weights };
                let mut scores = vec![0.0; visible];
                indexer_scores(&self.cpu, &query, T::keys(&keys), &mut scores);
                let mut best = topk(&scores, c.index_topk);
                best.sort_unstable();
                best
            };
        });
    }

    pub(super) fn attend_spans(
        &mut self,
        input: &AttendInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut CpuCache,
        out: &mut CpuTensor,
    ) {
        out.reshape(input.q.num_rows(), input.q.cols());
        let layout = cache.layout;
        match &mut cache.numbers {
            Numbers::F32(pools) => self.attend_in(input, spans, (&layout, pools), out),
            Numbers::Bf16(pools) => self.attend_in(input, spans, (&layout, pools), out),
        }
    }

    fn attend_in<T: Cell>(
        &self,
        input: &AttendInput<'_, Self>,
        spans: &[Span<'_>],
        (layout, pools): (&LayerLayout, &mut Pools<T>),
        out: &mut CpuTensor,
    ) {
        let kv: Vec<T> = input.kv.data().iter().map(|&x| T::narrow(x)).collect();
        let probabilities = match self.numerics {
            Numerics::Exact => Probabilities::Exact,
            Numerics::Official => Probabilities::Bf16,
        };
        let attention = Attention { input, pools, layout, kv: &kv, probabilities };
        let queries = queries(spans);
        let heads = self.heads_per_task(queries.len());
        let tasks_per_row = input.sinks.len() / heads;
        self.cpu.for_each_chunk(out.data_mut(), heads * layout.head_dim, |task, out| {
            let first_head = task % tasks_per_row * heads;
            attention.attend(self, queries[task / tasks_per_row], first_head, out);
        });
        for span in spans {
            keep_window(input.kv, span, layout, &mut pools.window);
        }
    }

    /// Heads that one thread computes at a time: all of a row, or fewer when there are fewer rows than threads.
    fn heads_per_task(&self, num_rows: usize) -> usize {
        let heads = self.config.num_attention_heads;
        let tasks_per_row = self.cpu.num_threads().div_ceil(num_rows.max(1));
        (1..=heads)
            .rev()
            .find(|per_task| heads.is_multiple_of(*per_task) && heads / per_task >= tasks_per_row)
            .unwrap_or(1)
    }
}

impl<T: Cell> Attention<'_, T> {
    /// Some heads of one row.
    fn attend(&self, backend: &CpuBackend, query: Query<'_>, first_head: usize, out: &mut [f32]) {
        let head_dim = self.layout.head_dim;
        let keys = self.keys(query);
        let channels = first_head * head_dim..first_head * head_dim + out.len();
        let args = SparseAttention {
            q: &self.input.q.row(query.row)[channels],
            sink: &self.input.sinks[first_head..first_head + out.len() / head_dim],
            keys: T::keys(&keys),
            softmax_scale: (head_dim as f64).sqrt().recip() as f32,
            probabilities: self.probabilities,
        };
        sparse_attention(&backend.cpu, &args, out);
        backend.cast(out);
    }

    /// What the query sees: window rows in rising position, then entries in rising order.
    fn keys(&self, query: Query<'_>) -> Vec<&[T]> {
        let Query { span, row, position } = query;
        let (layout, cols) = (self.layout, self.layout.head_dim);
        let oldest = (position + 1).saturating_sub(layout.sliding_window);
        let window = (oldest..=position).map(|p| {
            if p < span.first_position {
                let ring = span.slot * layout.window_rows + p % layout.window_rows;
                read_row(&self.pools.window, ring, cols)
            } else {
                read_row(self.kv, span.first_row + p - span.first_position, cols)
            }
        });
        let mut keys: Vec<_> = window.collect();
        if let Some(ratio) = layout.kind.ratio() {
            let entry = |w| read_row(&self.pools.entries, entry_cell(span, ratio, w), cols);
            match self.input.selection {
                Some(selection) => keys.extend(selection[row].iter().map(|&w| entry(w as usize))),
                None => keys.extend((0..(position + 1) / ratio).map(entry)),
            }
        }
        keys
    }
}

/// Every row of `spans`, in order.
fn queries<'a>(spans: &'a [Span<'a>]) -> Vec<Query<'a>> {
    let rows = |span: &'a Span<'a>| {
        (0..span.num_rows).map(move |offset| Query {
            span,
            row: span.first_row + offset,
            position: span.first_position + offset,
        })
    };
    spans.iter().flat_map(rows).collect()
}

/// Puts the span's last rows into the ring.
fn keep_window<T: Cell>(kv: &CpuTensor, span: &Span<'_>, layout: &LayerLayout, window: &mut [T]) {
    for offset in span.num_rows.saturating_sub(layout.window_rows)..span.num_rows {
        let ring = (span.first_position + offset) % layout.window_rows;
        let row = kv.row(span.first_row + offset);
        write_row(window, span.slot * layout.window_rows + ring, row);
    }
}
