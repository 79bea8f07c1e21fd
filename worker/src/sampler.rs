//! What a rank remembers of each sequence to sample for it: which tokens the answer has, and where its grammar is.
//!
//! All of it follows from the tokens: a sequence that is replayed, here or on another rank, gets the same state again.
//! Grammars are followed on threads of their own, while the model computes. A mask that is not ready when the logits are
//! puts the sample off to the next step instead of holding up the other sequences; that costs the sequence
//! time and never changes its tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use switchyard_kernels::sampling::Adjustment;
use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::SequenceId;
use tokio::time::Instant;

use crate::backend::SampleRequest;
use crate::metric_definitions as metric;
use crate::step::{ChunkTokens, SampledToken, SamplingParams, SequenceStart, StepBatch};

mod follower;
#[cfg(test)]
pub(crate) mod tests;

use follower::{Follower, Followers, Readiness};

/// How long a step waits for masks after its logits are there, all sequences together. A usual mask takes some tens of
/// microseconds and is ready long before.
pub(crate) const MASK_BUDGET: Duration = Duration::from_millis(2);

/// The sampling state of a rank's sequences.
#[derive(Debug)]
pub(crate) struct Samplers {
    followers: Arc<Followers>,
    mask_budget: Duration,
    samplers: BTreeMap<SequenceId, Sampler>,
}

/// What becomes of a chunk that ends in a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is sampled.
    Now,
    /// It is put off.
    Later,
    /// It can never be sampled.
    Never(String),
}

/// One sequence's state.
#[derive(Debug)]
struct Sampler {
    params: SamplingParams,
    /// Position of the next token of the answer.
    next_position: usize,
    /// How often the answer has each of its tokens; kept only for penalties.
    counts: BTreeMap<u32, u32>,
    /// Of `params` and `counts`, by ascending token.
    bias: Vec<(u32, f32)>,
    follower: Option<Follower>,
}

// === impl Samplers ===

impl Samplers {
    /// No sequences, for a model whose `tokenizer.json` is at `tokenizer`. It is read when a grammar first needs it.
    pub(crate) fn new(config: &ModelConfig, tokenizer: Option<PathBuf>) -> Self {
        Self {
            followers: Arc::new(Followers::new(config, tokenizer)),
            mask_budget: MASK_BUDGET,
            samplers: BTreeMap::new(),
        }
    }

    /// The same with another [`MASK_BUDGET`].
    #[cfg(test)]
    pub(crate) fn with_mask_budget(mut self, mask_budget: Duration) -> Self {
        self.mask_budget = mask_budget;
        self
    }

    /// Takes in what begins and what ends with a batch that was admitted, and the tokens that it brings: those of an answer
    /// that is replayed count for the sample at the end of their own chunk.
    pub(crate) fn admit(&mut self, batch: &StepBatch) {
        for id in &batch.released {
            self.samplers.remove(id);
        }
        for chunk in &batch.chunks {
            if let Some(start) = &chunk.start {
                self.begin(chunk.sequence, start);
            }
            let ChunkTokens::Ids(ids) = &chunk.tokens else { continue };
            let Some(sampler) = self.samplers.get_mut(&chunk.sequence) else { continue };
            for (position, &token) in (chunk.first_position as usize..).zip(ids) {
                sampler.accept(position, token, &self.followers);
            }
        }
    }

    /// Begins a sequence.
    pub(crate) fn begin(&mut self, id: SequenceId, start: &SequenceStart) {
        self.samplers.insert(id, Sampler::new(start, &self.followers));
    }

    /// Forgets all sequences.
    pub(crate) fn clear(&mut self) {
        self.samplers.clear();
    }

    /// Decides for each sequence in turn whether it is sampled now. Waits at most the budget, all in all.
    pub(crate) fn turns(&mut self, ids: impl Iterator<Item = SequenceId>) -> Vec<Turn> {
        let deadline = Instant::now() + self.mask_budget;
        let turns: Vec<_> = ids
            .map(|id| match self.samplers.get_mut(&id) {
                Some(sampler) => sampler.turn(deadline, &self.followers),
                None => Turn::Never("it was never begun".to_owned()),
            })
            .collect();
        metric::samples_deferred(turns.iter().filter(|turn| **turn == Turn::Later).count());
        turns
    }

    /// How to sample for a sequence whose turn it is.
    pub(crate) fn request(&self, id: SequenceId, position: u32) -> Option<SampleRequest<'_>> {
        let sampler = self.samplers.get(&id)?;
        let allowed = sampler.follower.as_ref().and_then(Follower::allowed);
        let adjustment = Adjustment { bias: &sampler.bias, allowed };
        Some(SampleRequest { params: &sampler.params, position, adjustment })
    }

    /// Takes in what was sampled in a step that is done.
    pub(crate) fn commit(&mut self, samples: &[SampledToken]) {
        for sample in samples {
            if let Some(sampler) = self.samplers.get_mut(&sample.sequence) {
                sampler.accept(sample.position as usize, sample.token_id, &self.followers);
            }
        }
    }
}

// === impl Sampler ===

impl Sampler {
    fn new(start: &SequenceStart, followers: &Arc<Followers>) -> Self {
        let params = start.sampling.clone();
        let follower = start.constraint.as_ref();
        Self {
            bias: params.logit_bias.clone(),
            params,
            next_position: start.prompt_len,
            counts: BTreeMap::new(),
            follower: follower.map(|constraint| Follower::new(constraint, followers)),
        }
    }

    fn turn(&mut self, deadline: Instant, followers: &Arc<Followers>) -> Turn {
        match self.follower.as_mut().map(|follower| follower.settle(deadline, followers)) {
            None | Some(Readiness::Ready) => Turn::Now,
            Some(Readiness::Working) => Turn::Later,
            Some(Readiness::Failed(problem)) => Turn::Never(problem),
        }
    }

    /// Takes a token in, unless it belongs to the prompt or has been taken in: a token whose sample was put off may be
    /// computed twice.
    fn accept(&mut self, position: usize, token: u32, followers: &Arc<Followers>) {
        if position < self.next_position {
            return;
        }
        self.next_position = position + 1;
        if let Some(follower) = &mut self.follower {
            follower.accept(token, followers);
        }
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
            self.penalize(token);
        }
    }

    /// Sets the bias of a token that has been counted. From the count and not from the bias before, so that rounding does
    /// not depend on the way here.
    fn penalize(&mut self, token: u32) {
        let count = self.counts.get(&token).copied().unwrap_or_default();
        let asked = &self.params.logit_bias;
        let asked =
            asked.binary_search_by_key(&token, |(token, _)| *token).map_or(0.0, |i| asked[i].1);
        let penalty = self.params.presence_penalty + self.params.frequency_penalty * count as f32;
        match self.bias.binary_search_by_key(&token, |(token, _)| *token) {
            Ok(index) => self.bias[index].1 = asked - penalty,
            Err(index) => self.bias.insert(index, (token, asked - penalty)),
        }
    }
}
