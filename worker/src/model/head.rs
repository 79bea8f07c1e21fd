//! From the last layer's streams to samples.

use super::load::ModelWeights;
use super::pass::Pass;
use crate::backend::{Backend, SampleRequest};
use crate::step::{SampledToken, StepBatch};

/// Which rows get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// Those that are sampled from.
    Sampled,
    /// All of them, and they are returned.
    All,
}

impl<B: Backend> Pass<'_, B> {
    /// Samples what `batch` asks for; with [`Rows::All`] also returns `[rows, vocab_size]` logits.
    pub(super) fn head(
        &mut self,
        weights: &ModelWeights<B>,
        batch: &StepBatch,
        rows: Rows,
    ) -> (Vec<SampledToken>, Vec<f32>) {
        let start = self.clock();
        let logits = match rows {
            Rows::All if !self.ids.is_empty() => {
                let all: Vec<_> = (0..self.ids.len()).collect();
                self.logits(weights, &all);
                self.backend.download(&self.work.logits)
            }
            Rows::All | Rows::Sampled => Vec::new(),
        };
        let samples = self.samples(weights, batch);
        self.timings.head += (self.clock() - start).as_secs_f64();
        (samples, logits)
    }

    fn samples(&mut self, weights: &ModelWeights<B>, batch: &StepBatch) -> Vec<SampledToken> {
        let mut rows = Vec::new();
        let mut sequences = Vec::new();
        let mut requests = Vec::new();
        for (chunk, span) in batch.chunks.iter().zip(self.spans) {
            if let Some(params) = &chunk.sampling {
                rows.push(span.first_row + span.num_rows - 1);
                sequences.push(chunk.sequence);
                requests.push(SampleRequest { params, position: span.end_position() as u32 });
            }
        }
        if rows.is_empty() {
            return Vec::new();
        }
        self.logits(weights, &rows);
        let samples = self.backend.sample(&self.work.logits, &requests);
        let described = sequences.into_iter().zip(&requests).zip(samples);
        described
            .map(|((sequence, request), sample)| SampledToken {
                sequence,
                position: request.position,
                token_id: sample.token_id,
                logprob: sample.logprob,
                top_logprobs: sample.top_logprobs,
            })
            .collect()
    }

    /// Logits of the given rows.
    fn logits(&mut self, weights: &ModelWeights<B>, rows: &[usize]) {
        let (backend, work) = (&mut *self.backend, &mut *self.work);
        backend.take_rows(&work.streams, rows, &mut work.picked);
        backend.hyper_head(&weights.hyper_head, &work.picked, &mut work.x);
        backend.norm(&weights.norm, &mut work.x);
        backend.linear_f32(&weights.head, &work.x, &mut work.logits);
    }
}
