//! Messages into the types of this crate and back. What is parsed here is not checked again.

use std::time::Duration;

use switchyard_grammar::Grammar;
use switchyard_moe::ids::{BlockId, EpRank, GroupEpoch, LogicalExpertId, SequenceId, StepId};
use switchyard_moe::placement::Placement;
use switchyard_proto::worker as proto;
use switchyard_proto::worker::sequence_chunk::Tokens;

use crate::kv_cache::CacheLimits;
use crate::rank::{Plan, Step};
use crate::step::{
    ChunkTokens, Constraint, SampledToken, SamplingParams, SequenceChunk, SequenceStart, StepBatch,
    StepResult, StepTimings,
};
use crate::trace::{TRACES_MAX, Trace};

#[cfg(test)]
mod tests;

/// Ranks of a group at most: what one message can describe and one rank can connect to.
pub const WORLD_SIZE_MAX: u32 = 1024;

/// Longest time that a group may take to form.
const FORM_DEADLINE_MAX: Duration = Duration::from_secs(600);

/// A field of a message that cannot be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field, as in the `.proto` file.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What FormGroup asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The new epoch.
    pub epoch: GroupEpoch,
    /// This rank.
    pub rank: EpRank,
    /// `host:port` of every rank's data plane, by rank.
    pub peers: Vec<String>,
    /// Where every expert lives.
    pub placement: Placement,
    /// How long forming may take.
    pub deadline: Duration,
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> FieldError {
    FieldError { field: field.into(), problem: problem.into() }
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, FieldError> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

// === Load, FormGroup ===

/// Reads a LoadRequest for a model of `num_layers` layers with `num_experts` experts each.
///
/// # Errors
/// Names the field.
pub fn plan(
    request: proto::LoadRequest,
    num_layers: usize,
    num_experts: usize,
) -> Result<Plan, FieldError> {
    let rank = rank(request.rank, request.world_size)?;
    let message = required(request.placement, "placement")?;
    let placement = placement(message, num_layers, num_experts, request.world_size)?;
    let limits = limits(required(request.limits, "limits")?)?;
    Ok(Plan { rank, placement, limits })
}

/// Reads a FormGroupRequest, as [`plan`].
///
/// # Errors
/// Names the field.
pub fn group(
    request: proto::FormGroupRequest,
    num_layers: usize,
    num_experts: usize,
) -> Result<GroupPlan, FieldError> {
    if request.epoch == 0 {
        return Err(wrong("epoch", "is 0, which means no group"));
    }
    let world_size = request.peers.len() as u32;
    let rank = rank(request.rank, world_size)?;
    let message = required(request.placement, "placement")?;
    let placement = placement(message, num_layers, num_experts, world_size)?;
    let deadline = Duration::from_millis(request.deadline_ms.into());
    if deadline.is_zero() || deadline > FORM_DEADLINE_MAX {
        return Err(wrong(
            "deadline_ms",
            format!("is {}, must be 1..={}", request.deadline_ms, FORM_DEADLINE_MAX.as_millis()),
        ));
    }
    let peers = request.peers.into_iter().enumerate().map(|(index, peer)| {
        let field = format!("peers[{index}]");
        if peer.rank as usize != index {
            return Err(wrong(field, format!("has rank {}, peers are in rank order", peer.rank)));
        }
        if !peer.data_address.contains(':') {
            let problem = format!("{:?} is not host:port", peer.data_address);
            return Err(wrong(field + ".data_address", problem));
        }
        Ok(peer.data_address)
    });
    Ok(GroupPlan {
        epoch: GroupEpoch(request.epoch),
        rank,
        peers: peers.collect::<Result<_, _>>()?,
        placement,
        deadline,
    })
}

fn rank(rank: u32, world_size: u32) -> Result<EpRank, FieldError> {
    if world_size == 0 || world_size > WORLD_SIZE_MAX {
        let problem = format!("{world_size} ranks, must be 1..={WORLD_SIZE_MAX}");
        return Err(wrong("world_size", problem));
    }
    if rank >= world_size {
        return Err(wrong("rank", format!("is {rank}, the group has {world_size} ranks")));
    }
    Ok(EpRank(rank))
}

fn placement(
    message: proto::Placement,
    num_layers: usize,
    num_experts: usize,
    world_size: u32,
) -> Result<Placement, FieldError> {
    if message.layers.len() != num_layers {
        let problem = format!("has {}, the model has {num_layers}", message.layers.len());
        return Err(wrong("placement.layers", problem));
    }
    let layers = message.layers.into_iter().enumerate().map(|(index, layer)| {
        let slots = layer.physical_to_logical.iter().map(|&expert| match expert {
            -1 => Ok(None),
            0.. => Ok(Some(LogicalExpertId(expert.unsigned_abs()))),
            _ => {
                let field = format!("placement.layers[{index}].physical_to_logical");
                Err(wrong(field, format!("has {expert}; -1 marks an empty slot")))
            }
        });
        Ok((layer.slots_per_rank as usize, slots.collect::<Result<_, _>>()?))
    });
    let layers = layers.collect::<Result<_, _>>()?;
    Placement::new(layers, num_experts, world_size as usize)
        .map_err(|error| wrong("placement", error.to_string()))
}

fn limits(message: proto::CacheLimits) -> Result<CacheLimits, FieldError> {
    let positive = |value: u32, field: &str| match value {
        0 => Err(wrong(format!("limits.{field}"), "is 0")),
        _ => Ok(value as usize),
    };
    Ok(CacheLimits {
        num_blocks: positive(message.num_blocks, "num_blocks")?,
        max_num_seqs: positive(message.max_num_seqs, "max_num_seqs")?,
        max_num_batched_tokens: positive(message.max_num_batched_tokens, "max_num_batched_tokens")?,
        max_model_len: positive(message.max_model_len, "max_model_len")?,
    })
}

// === Execute ===

/// Reads a RankBatch. That it fits the rank's sequences and blocks is for the model to check.
///
/// # Errors
/// Names the field.
pub fn batch(message: proto::RankBatch) -> Result<Step, FieldError> {
    let traces = traces(&message.traces)?;
    let chunks = message.chunks.into_iter().enumerate().map(|(index, chunk)| {
        self::chunk(chunk)
            .map_err(|error| wrong(format!("chunks[{index}].{}", error.field), error.problem))
    });
    let batch = StepBatch {
        chunks: chunks.collect::<Result<_, _>>()?,
        released: message.released_sequence_ids.into_iter().map(SequenceId).collect(),
    };
    Ok(Step { epoch: GroupEpoch(message.epoch), step: StepId(message.step), batch, traces })
}

fn traces(messages: &[proto::TraceContext]) -> Result<Vec<Trace>, FieldError> {
    if messages.len() > TRACES_MAX {
        let problem = format!("has {}, at most {TRACES_MAX} are told", messages.len());
        return Err(wrong("traces", problem));
    }
    let traces = messages.iter().enumerate().map(|(index, message)| {
        Trace::new(&message.trace_id, &message.span_id)
            .ok_or_else(|| wrong(format!("traces[{index}]"), "is no span of a trace"))
    });
    traces.collect()
}

fn chunk(message: proto::SequenceChunk) -> Result<SequenceChunk, FieldError> {
    let tokens = match required(message.tokens, "tokens")? {
        Tokens::TokenIds(tokens) if tokens.ids.is_empty() => {
            return Err(wrong("token_ids", "is empty"));
        }
        Tokens::TokenIds(tokens) => ChunkTokens::Ids(tokens.ids),
        Tokens::LastSample(proto::LastSample {}) => ChunkTokens::LastSample,
    };
    Ok(SequenceChunk {
        sequence: SequenceId(message.sequence_id),
        first_position: message.first_position,
        tokens,
        new_blocks: message.new_blocks.into_iter().map(BlockId).collect(),
        start: message.start.map(start).transpose()?,
        samples: message.samples,
    })
}

fn start(message: proto::SequenceStart) -> Result<SequenceStart, FieldError> {
    Ok(SequenceStart {
        prompt_len: message.prompt_len as usize,
        sampling: sampling(required(message.sampling, "start.sampling")?),
        constraint: message.constraint.map(|constraint| Constraint {
            grammar: Grammar::lark(constraint.grammar),
            after: constraint.after,
            forbidden_before: constraint.forbidden_before,
        }),
    })
}

/// Values are checked with the sequence's other limits, in [`crate::kv_cache`].
fn sampling(message: proto::SamplingParams) -> SamplingParams {
    SamplingParams {
        temperature: message.temperature,
        min_p: message.min_p,
        top_k: message.top_k,
        top_p: message.top_p,
        presence_penalty: message.presence_penalty,
        frequency_penalty: message.frequency_penalty,
        logit_bias: message.logit_bias.iter().map(|bias| (bias.token_id, bias.bias)).collect(),
        seed: message.seed,
        choice: message.choice,
        logprobs: message.logprobs,
        num_top_logprobs: message.num_top_logprobs,
    }
}

/// Writes a step's result.
#[must_use]
pub fn output(epoch: GroupEpoch, step: StepId, result: StepResult) -> proto::StepOutput {
    proto::StepOutput {
        epoch: epoch.0,
        step: step.0,
        samples: result.samples.into_iter().map(sample).collect(),
        deferred_sequence_ids: result.deferred.into_iter().map(|id| id.0).collect(),
        failed: result.failed.into_iter().map(failed).collect(),
        timings: Some(timings(&result.timings)),
    }
}

fn sample(sample: SampledToken) -> proto::SampledToken {
    let top_logprobs = sample.top_logprobs.into_iter();
    proto::SampledToken {
        sequence_id: sample.sequence.0,
        position: sample.position,
        token_id: sample.token_id,
        logprob: sample.logprob,
        top_logprobs: top_logprobs
            .map(|(token_id, logprob)| proto::TokenLogprob { token_id, logprob })
            .collect(),
    }
}

fn failed((id, reason): (SequenceId, String)) -> proto::FailedSequence {
    proto::FailedSequence { sequence_id: id.0, reason }
}

fn timings(timings: &StepTimings) -> proto::StepTimings {
    proto::StepTimings {
        total: timings.total,
        attention: timings.attention,
        dispatch: timings.dispatch,
        experts: timings.experts,
        combine: timings.combine,
        head: timings.head,
        num_tokens: timings.num_tokens,
    }
}
