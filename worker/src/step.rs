//! One step of one rank, as the model sees it. The wire's messages are parsed into these once, in `service`.

use switchyard_moe::ids::{BlockId, SequenceId};

/// The work of one rank in one step. Every rank takes part in every step, with no chunks if it has no work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepBatch {
    /// Sequence chunks, in the order in which their samples are reported.
    pub chunks: Vec<SequenceChunk>,
    /// Sequences whose state is dropped before the step runs.
    pub released: Vec<SequenceId>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceChunk {
    /// The sequence; a chunk with `first_position` 0 begins it (anew).
    pub sequence: SequenceId,
    /// Absolute position of the first token.
    pub first_position: u32,
    /// The tokens.
    pub tokens: ChunkTokens,
    /// KV blocks appended to the sequence's block table before the chunk runs.
    pub new_blocks: Vec<BlockId>,
    /// How to sample from the logits of the last token, or `None` for a chunk that ends inside the prompt.
    pub sampling: Option<SamplingParams>,
}

/// Where a chunk's tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkTokens {
    /// Prefill: the ids, never empty.
    Ids(Vec<u32>),
    /// Decode: the one token that the sequence sampled last.
    LastSample,
}

/// Sampling parameters of one chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// 1 means off.
    pub top_p: f32,
    /// Key of the counter-based generator, with `choice` and the position.
    pub seed: u64,
    /// Index of the choice among the request's `n`.
    pub choice: u32,
    /// Whether to report the sampled token's log probability.
    pub logprobs: bool,
    /// Most likely alternatives to report, 0..=20.
    pub num_top_logprobs: u32,
}

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    /// One per chunk with `sampling`, in chunk order.
    pub samples: Vec<SampledToken>,
    /// Where the time went.
    pub timings: StepTimings,
}

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its sequence.
    pub sequence: SequenceId,
    /// Its absolute position.
    pub position: u32,
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability under the untempered distribution; 0 unless asked for.
    pub logprob: f32,
    /// Most likely tokens with log probabilities, most likely first; ties to the lower id.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Seconds of one step by phase, summed over layers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimings {
    /// Whole step.
    pub total: f64,
    /// Attention and residual mixing.
    pub attention: f64,
    /// `dispatch`, waiting included.
    pub dispatch: f64,
    /// Expert computation, shared expert included.
    pub experts: f64,
    /// `combine`, waiting included.
    pub combine: f64,
    /// Head and sampling.
    pub head: f64,
    /// Tokens computed.
    pub num_tokens: u32,
}
