//! The attention sublayer.

use switchyard_moe::config::AttentionKind;

use super::load::{AttentionWeights, IndexerWeights};
use super::pass::Pass;
use crate::backend::{
    AttendInput, Backend, CompressInput, Entries, RopeTable, Rotation, SelectInput,
};

impl<B: Backend> Pass<'_, B> {
    /// `y = attention(x)`: one softmax over the window, the visible or chosen entries, and a sink.
    pub(super) fn attention(
        &mut self,
        weights: &AttentionWeights<B>,
        cache: &mut B::Cache,
        kind: AttentionKind,
    ) {
        let head_dim = self.config.head_dim;
        let table = match kind {
            AttentionKind::SlidingWindow => RopeTable::Main,
            AttentionKind::Csa { .. } | AttentionKind::Hca { .. } => RopeTable::Compress,
        };
        self.project(weights, table);
        self.compress(weights, cache);
        let chosen = match &weights.indexer {
            Some(indexer) if self.must_choose(kind) => {
                self.choose(indexer, cache);
                true
            }
            Some(_) | None => false,
        };
        let backend = &mut *self.backend;
        let t = &mut self.work.attention;
        let selection = chosen.then_some(&t.selection);
        let input = AttendInput { q: &t.q, kv: &t.kv, sinks: &weights.sinks, selection };
        backend.attend(&input, self.spans, cache, &mut t.out);
        backend.rope(table, Rotation::Inverse, head_dim, &mut t.out);
        backend.grouped_linear(&weights.wo_a, &t.out, &mut t.out_latent);
        backend.linear(&weights.wo_b, &t.out_latent, &mut self.work.y);
    }

    /// Queries, and the window rows that are key and value at once.
    fn project(&mut self, weights: &AttentionWeights<B>, table: RopeTable) {
        let head_dim = self.config.head_dim;
        let backend = &mut *self.backend;
        let (x, t) = (&self.work.x, &mut self.work.attention);
        backend.linear(&weights.wq_a, x, &mut t.q_latent);
        backend.norm(&weights.q_norm, &mut t.q_latent);
        backend.linear(&weights.wq_b, &t.q_latent, &mut t.q);
        backend.norm_heads(&mut t.q);
        backend.rope(table, Rotation::Forward, head_dim, &mut t.q);
        backend.linear(&weights.wkv, x, &mut t.kv);
        backend.norm(&weights.kv_norm, &mut t.kv);
        backend.rope(table, Rotation::Forward, head_dim, &mut t.kv);
        backend.quantize_kv(&mut t.kv);
    }

    /// Finishes the entries, and the indexer's keys, whose last token is in this step.
    fn compress(&mut self, weights: &AttentionWeights<B>, cache: &mut B::Cache) {
        let backend = &mut *self.backend;
        let (x, t) = (&self.work.x, &mut self.work.attention);
        if let Some(weights) = &weights.compressor {
            backend.linear_f32(&weights.wkv, x, &mut t.entry_kv);
            backend.linear_f32(&weights.wgate, x, &mut t.entry_score);
            let (kv, score) = (&t.entry_kv, &t.entry_score);
            let input = CompressInput { entries: Entries::Main, weights, kv, score };
            backend.compress(&input, self.spans, cache);
        }
        if let Some(IndexerWeights { compressor: weights, .. }) = &weights.indexer {
            backend.linear_f32(&weights.wkv, x, &mut t.index_kv);
            backend.linear_f32(&weights.wgate, x, &mut t.index_score);
            let (kv, score) = (&t.index_kv, &t.index_score);
            let input = CompressInput { entries: Entries::IndexKeys, weights, kv, score };
            backend.compress(&input, self.spans, cache);
        }
    }

    /// Whether some token of the step sees more entries than it may attend. Otherwise the choice is no choice.
    fn must_choose(&self, kind: AttentionKind) -> bool {
        let topk = self.config.index_topk;
        let visible = |end: usize| kind.ratio().map_or(0, |ratio| end / ratio);
        self.spans.iter().any(|span| visible(span.end_position()) > topk)
    }

    /// The lightning indexer.
    fn choose(&mut self, weights: &IndexerWeights<B>, cache: &B::Cache) {
        let head_dim = self.config.index_head_dim;
        let backend = &mut *self.backend;
        let t = &mut self.work.attention;
        backend.linear(&weights.wq_b, &t.q_latent, &mut t.index_q);
        backend.rope(RopeTable::Compress, Rotation::Forward, head_dim, &mut t.index_q);
        backend.quantize_index(&mut t.index_q);
        backend.linear(&weights.weights_proj, &self.work.x, &mut t.index_weights);
        let input = SelectInput { q: &t.index_q, weights: &t.index_weights };
        backend.select(&input, self.spans, cache, &mut t.selection);
    }
}
