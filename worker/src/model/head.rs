//! From the last layer's streams to samples.

use super::load::ModelWeights;
use super::pass::Pass;
use crate::backend::Backend;
use crate::sampler::Turn;
use crate::step::{SampledToken, StepBatch, StepResult};

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
    ) -> (StepResult, Vec<f32>) {
        let start = self.clock();
        let logits = match rows {
            Rows::All if !self.ids.is_empty() => {
                let all: Vec<_> = (0..self.ids.len()).collect();
                self.logits(weights, &all);
                self.backend.download(&self.work.logits)
            }
            Rows::All | Rows::Sampled => Vec::new(),
        };
        let result = self.sample(weights, batch);
        self.timings.head += (self.clock() - start).as_secs_f64();
        (result, logits)
    }

    /// The samples of those sequences whose turn it is.
    fn sample(&mut self, weights: &ModelWeights<B>, batch: &StepBatch) -> StepResult {
        let chunks = || batch.chunks.iter().zip(self.spans).filter(|(chunk, _)| chunk.samples);
        let turns = self.samplers.turns(chunks().map(|(chunk, _)| chunk.sequence));
        let mut result = StepResult::default();
        let (mut rows, mut sampled) = (Vec::new(), Vec::new());
        for ((chunk, span), turn) in chunks().zip(turns) {
            match turn {
                Turn::Now => {
                    rows.push(span.first_row + span.num_rows - 1);
                    sampled.push((chunk.sequence, span.end_position() as u32));
                }
                Turn::Later => result.deferred.push(chunk.sequence),
                Turn::Never(reason) => result.failed.push((chunk.sequence, reason)),
            }
        }
        if rows.is_empty() {
            return result;
        }
        self.logits(weights, &rows);
        let samplers = &*self.samplers;
        let requests: Vec<_> =
            sampled.iter().filter_map(|&(id, position)| samplers.request(id, position)).collect();
        let samples = self.backend.sample(&self.work.logits, &requests);
        result.samples = sampled
            .into_iter()
            .zip(samples)
            .map(|((sequence, position), sample)| SampledToken {
                sequence,
                position,
                token_id: sample.token_id,
                logprob: sample.logprob,
                top_logprobs: sample.top_logprobs,
            })
            .collect();
        result
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
