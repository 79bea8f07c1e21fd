//! Pooling of finished entries. An entry is computed from the same rows in the same order however its tokens were
//! cut into spans: rows of this step come from its tensors, older ones from the ring.

use switchyard_kernels::compressor::{PoolRow, compress_pool};
use switchyard_kernels::norm::rms_norm;
use switchyard_kernels::rope::rope;
use switchyard_moe::config::AttentionKind;

use super::CpuBackend;
use super::cache::{CpuCache, Tail, entry_cell, read_row, write_row};
use crate::backend::{CompressInput, Entries};
use crate::kv_cache::Span;

/// The compressor rows of one sequence, by absolute position.
struct Rows<'a> {
    span: &'a Span<'a>,
    /// Of the step, `[rows, width]`.
    kv: &'a [f32],
    /// Of the step, with `ape`.
    score: &'a [f32],
    tail: &'a Tail,
    tail_rows: usize,
}

impl<'a> Rows<'a> {
    fn at(&self, position: usize) -> PoolRow<'a> {
        let width = self.tail.width;
        match position.checked_sub(self.span.first_position) {
            Some(offset) => {
                let row = self.span.first_row + offset;
                PoolRow {
                    kv: read_row(self.kv, row, width),
                    score: read_row(self.score, row, width),
                }
            }
            None => {
                let row = self.span.slot * self.tail_rows + position % self.tail_rows;
                let tail = self.tail;
                PoolRow {
                    kv: read_row(&tail.kv, row, width),
                    score: read_row(&tail.score, row, width),
                }
            }
        }
    }
}

impl CpuBackend {
    pub(super) fn compress_spans(
        &mut self,
        input: &CompressInput<'_, Self>,
        spans: &[Span<'_>],
        cache: &mut CpuCache,
    ) {
        let ratio = cache.ratio();
        let mut score = std::mem::take(&mut self.scratch);
        score.clear();
        score.extend_from_slice(input.score.data());
        let width = input.score.cols();
        for span in spans {
            let rows = &mut score[span.first_row * width..][..span.num_rows * width];
            for (offset, row) in rows.chunks_mut(width).enumerate() {
                let ape =
                    read_row(&input.weights.ape, (span.first_position + offset) % ratio, width);
                row.iter_mut().zip(ape).for_each(|(score, ape)| *score += ape);
            }
        }
        for span in spans {
            self.finish_entries(input, &score, span, cache);
            keep_rows(input, &score, span, cache);
        }
        self.scratch = score;
    }

    /// Pools and stores the entries whose last token is in `span`.
    fn finish_entries(
        &self,
        input: &CompressInput<'_, Self>,
        score: &[f32],
        span: &Span<'_>,
        cache: &mut CpuCache,
    ) {
        let ratio = cache.ratio();
        let mut entry = vec![0.0; input.weights.norm.len()];
        for index in span.first_position / ratio..span.end_position() / ratio {
            let rows = Rows {
                span,
                kv: input.kv.data(),
                score,
                tail: cache.tail(input.entries),
                tail_rows: cache.layout.tail_rows,
            };
            let pool = match cache.layout.kind {
                AttentionKind::Csa { .. } => overlapping(&rows, ratio, index, entry.len()),
                AttentionKind::SlidingWindow | AttentionKind::Hca { .. } => {
                    (index * ratio..(index + 1) * ratio).map(|p| rows.at(p)).collect()
                }
            };
            compress_pool(&self.cpu, &pool, &mut entry);
            self.cast(&mut entry);
            rms_norm(&self.cpu, &mut entry, &input.weights.norm, self.config.rms_norm_eps);
            self.cast(&mut entry);
            let angles = self.compress_rope.angles((index * ratio) as u32);
            rope(&mut entry, input.weights.norm.len(), &angles);
            self.cast(&mut entry);
            match input.entries {
                Entries::Main => self.quantize_kv_row(&mut entry),
                Entries::IndexKeys => self.quantize_index_rows(&mut entry),
            }
            cache.put_entry(input.entries, entry_cell(span, ratio, index), &entry);
        }
    }
}

/// The first halves of the previous entry's rows, if there is one, then the second halves of entry `index`'s own.
fn overlapping<'a>(rows: &Rows<'a>, ratio: usize, index: usize, half: usize) -> Vec<PoolRow<'a>> {
    let first = index * ratio;
    let previous = first.saturating_sub(ratio)..first;
    let own = first..first + ratio;
    let overlap = previous.map(|position| {
        let PoolRow { kv, score } = rows.at(position);
        PoolRow { kv: &kv[..half], score: &score[..half] }
    });
    let own = own.map(|position| {
        let PoolRow { kv, score } = rows.at(position);
        PoolRow { kv: &kv[half..], score: &score[half..] }
    });
    overlap.chain(own).collect()
}

/// Puts the span's last rows into the ring.
fn keep_rows(
    input: &CompressInput<'_, CpuBackend>,
    score: &[f32],
    span: &Span<'_>,
    cache: &mut CpuCache,
) {
    let tail_rows = cache.layout.tail_rows;
    let tail = cache.tail_mut(input.entries);
    for offset in span.num_rows.saturating_sub(tail_rows)..span.num_rows {
        let ring = span.slot * tail_rows + (span.first_position + offset) % tail_rows;
        let row = span.first_row + offset;
        write_row(&mut tail.kv, ring, input.kv.row(row));
        write_row(&mut tail.score, ring, read_row(score, row, tail.width));
    }
}
