//! A plan as messages to the ranks, and outputs checked against their plan.

use std::time::Duration;

use switchyard_moe::ids::{GroupEpoch, SequenceId, StepId};
use switchyard_proto::worker::{self, sequence_chunk};

use super::request::{GeneratedToken, SamplingParams};
use super::streams::Streams;
use crate::scheduler::{Chunk, ChunkTokens, RankBatch, Sample};

/// A sample that a rank owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    sequence: SequenceId,
    position: usize,
}

/// The message of one rank's part of a step.
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
pub(super) fn samples(
    owed: &[Owed],
    output: Vec<worker::SampledToken>,
) -> Result<Vec<Sample>, String> {
    if owed.len() != output.len() {
        return Err(format!("returned {} samples instead of {}", output.len(), owed.len()));
    }
    owed.iter().zip(output).map(|(owed, token)| sample(*owed, token)).collect()
}

/// Time that a rank says it needed; zero when it says nothing sensible.
pub(super) fn total_time(timings: Option<&worker::StepTimings>) -> Duration {
    timings.and_then(|timings| Duration::try_from_secs_f64(timings.total).ok()).unwrap_or_default()
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
        sampling: streams.sampling(chunk.sequence).filter(|_| chunk.samples).map(sampling),
    }
}

fn sampling(params: &SamplingParams) -> worker::SamplingParams {
    worker::SamplingParams {
        temperature: params.temperature,
        top_p: params.top_p,
        seed: params.seed,
        choice: params.choice,
        logprobs: params.logprobs,
        num_top_logprobs: params.num_top_logprobs,
    }
}

fn sample(owed: Owed, token: worker::SampledToken) -> Result<Sample, String> {
    let got = (token.sequence_id, token.position as usize);
    if got != (owed.sequence.0, owed.position) {
        return Err(format!(
            "returned a sample for sequence {} position {} instead of sequence {} position {}",
            got.0, got.1, owed.sequence, owed.position
        ));
    }
    let top_logprobs = token.top_logprobs.iter().map(|top| (top.token_id, top.logprob)).collect();
    Ok(Sample {
        sequence: owed.sequence,
        position: owed.position,
        token: GeneratedToken {
            token_id: token.token_id,
            logprob: Some(token.logprob),
            top_logprobs,
        },
    })
}
