//! A plan as messages to the ranks, and outputs checked against their plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use switchyard_moe::ids::{GroupEpoch, SequenceId, StepId};
use switchyard_proto::worker::{self, sequence_chunk};

use super::activity::RankStep;
use super::request::{GeneratedToken, SamplingParams};
use super::streams::{Start, Streams};
use crate::scheduler::{Chunk, ChunkTokens, Outcome, RankBatch, Sample};

/// A sample that a rank owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    sequence: SequenceId,
    position: usize,
}

/// The message of one rank's part of a step, told in no trace.
pub(super) fn batch(
    epoch: GroupEpoch,
    step: StepId,
    batch: &RankBatch,
    streams: &Streams,
) -> worker::RankBatch {
    worker::RankBatch {
        epoch: epoch.0,
        step: step.0,
        chunks: batch.chunks.iter().map(|part| chunk(part, streams)).collect(),
        released_sequence_ids: batch.released.iter().map(|id| id.0).collect(),
        traces: Vec::new(),
    }
}

/// The samples that a rank owes for its part of a step.
pub(super) fn owed(batch: &RankBatch) -> Vec<Owed> {
    let sampled = batch.chunks.iter().filter(|chunk| chunk.samples);
    sampled
        .map(|chunk| Owed { sequence: chunk.sequence, position: chunk.sample_position() })
        .collect()
}

/// A rank's samples, if they are exactly those it owes; else what is wrong.
pub(super) fn samples(owed: &[Owed], output: worker::StepOutput) -> Result<Vec<Sample>, String> {
    let mut failed: BTreeMap<_, _> =
        output.failed.into_iter().map(|failed| (failed.sequence_id, failed.reason)).collect();
    let mut deferred: BTreeSet<_> = output.deferred_sequence_ids.into_iter().collect();
    let returned = output.samples.len() + deferred.len() + failed.len();
    if owed.len() != returned {
        return Err(format!("returned {returned} samples instead of {}", owed.len()));
    }
    let mut tokens = output.samples.into_iter();
    let mut sample = |owed: &Owed| {
        let Owed { sequence, position } = *owed;
        let outcome = if let Some(reason) = failed.remove(&sequence.0) {
            Outcome::Failed(reason)
        } else if deferred.remove(&sequence.0) {
            Outcome::Deferred
        } else {
            Outcome::Drawn(drawn(*owed, tokens.next())?)
        };
        Ok(Sample { sequence, position, outcome })
    };
    owed.iter().map(&mut sample).collect()
}

/// A sample of this step was put off, so the next one of the sequence, if it is in flight, is for the same position.
pub(super) fn defer(later: &mut [Owed], deferred: SequenceId) {
    for owed in later.iter_mut().filter(|owed| owed.sequence == deferred) {
        owed.position -= 1;
    }
}

/// A rank's own account of its step; no time when it says nothing sensible.
pub(super) fn rank_step(timings: Option<&worker::StepTimings>) -> RankStep {
    timings.map_or_else(RankStep::default, |timings| RankStep {
        time: Duration::try_from_secs_f64(timings.total).unwrap_or_default(),
        num_tokens: timings.num_tokens,
    })
}

fn chunk(chunk: &Chunk, streams: &Streams) -> worker::SequenceChunk {
    let tokens = match &chunk.tokens {
        ChunkTokens::Ids(ids) => {
            sequence_chunk::Tokens::TokenIds(worker::TokenIds { ids: ids.clone() })
        }
        ChunkTokens::LastSample => sequence_chunk::Tokens::LastSample(worker::LastSample {}),
    };
    worker::SequenceChunk {
        sequence_id: chunk.sequence.0,
        first_position: chunk.first_position as u32,
        tokens: Some(tokens),
        new_blocks: chunk.new_blocks.iter().map(|block| block.0).collect(),
        start: streams.start(chunk.sequence).filter(|_| chunk.first_position == 0).map(start),
        samples: chunk.samples,
    }
}

fn start(start: &Start) -> worker::SequenceStart {
    worker::SequenceStart {
        prompt_len: start.prompt_len,
        sampling: Some(sampling(&start.sampling)),
        constraint: start.constraint.as_ref().map(|constraint| worker::Constraint {
            grammar: constraint.grammar.as_str().to_owned(),
            after: constraint.after,
            forbidden_before: constraint.forbidden_before.clone(),
        }),
    }
}

fn sampling(params: &SamplingParams) -> worker::SamplingParams {
    worker::SamplingParams {
        temperature: params.temperature,
        top_p: params.top_p,
        top_k: params.top_k,
        min_p: params.min_p,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: bias(&params.logit_bias),
        seed: params.seed,
        choice: params.choice,
        logprobs: params.logprobs,
        num_top_logprobs: params.num_top_logprobs,
    }
}

fn bias(biases: &[(u32, f32)]) -> Vec<worker::TokenBias> {
    biases.iter().map(|&(token_id, bias)| worker::TokenBias { token_id, bias }).collect()
}

fn drawn(owed: Owed, token: Option<worker::SampledToken>) -> Result<GeneratedToken, String> {
    let Owed { sequence, position } = owed;
    let instead = |got: String| {
        format!("returned {got} instead of a sample for sequence {sequence} position {position}")
    };
    let token = token.ok_or_else(|| instead("nothing".to_owned()))?;
    let got = (token.sequence_id, token.position as usize);
    if got != (sequence.0, position) {
        return Err(instead(format!("a sample for sequence {} position {}", got.0, got.1)));
    }
    Ok(GeneratedToken {
        token_id: token.token_id,
        logprob: Some(token.logprob),
        top_logprobs: token.top_logprobs.iter().map(|top| (top.token_id, top.logprob)).collect(),
    })
}
