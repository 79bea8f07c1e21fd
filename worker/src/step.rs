//! One step of one rank, as the model sees it. The wire's messages are parsed into these once, in `service`.

use switchyard_grammar::Grammar;
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
    /// What the sequence is, in the chunk that begins it.
    pub start: Option<SequenceStart>,
    /// Whether the last token's logits are sampled from.
    pub samples: bool,
}

/// What must be known of a sequence to sample for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceStart {
    /// Tokens of the prompt. Those after it, of a sequence that is replayed, belong to the answer.
    pub prompt_len: usize,
    /// How to sample.
    pub sampling: SamplingParams,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
}

/// A grammar that an answer follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// The grammar, not compiled yet.
    pub grammar: Grammar,
    /// The token after which it holds; `None`: from the first token on.
    pub after: Option<u32>,
    /// Tokens that may not be drawn before that.
    pub forbidden_before: Vec<u32>,
}

/// Where a chunk's tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkTokens {
    /// Prefill: the ids, never empty.
    Ids(Vec<u32>),
    /// Decode: the one token that the sequence sampled last.
    LastSample,
}

/// Sampling parameters of one sequence. By default the most likely token is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// Draw among tokens at least this share as likely as the most likely one; 0 means off.
    pub min_p: f32,
    /// Draw among this many most likely tokens; 0 means off.
    pub top_k: u32,
    /// Draw among the most likely of these that together reach this share of their probability; 1 means off.
    pub top_p: f32,
    /// Taken once from the logit of every token that the answer has.
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, by ascending token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the counter-based generator, with `choice` and the position.
    pub seed: u64,
    /// Index of the choice among the request's `n`.
    pub choice: u32,
    /// Whether to report the sampled token's log probability.
    pub logprobs: bool,
    /// Most likely alternatives to report, 0..=20.
    pub num_top_logprobs: u32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            min_p: 0.0,
            top_k: 0,
            top_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
            logprobs: false,
            num_top_logprobs: 0,
        }
    }
}

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    /// In chunk order. Each chunk that samples is here, in `deferred`, or in `failed`.
    pub samples: Vec<SampledToken>,
    /// Sequences whose grammar was not ready in time. The chunk's last token counts as not computed.
    pub deferred: Vec<SequenceId>,
    /// Sequences that can have no further sample, and why.
    pub failed: Vec<(SequenceId, String)>,
    /// Where the time went.
    pub timings: StepTimings,
    /// Rows that the experts of this rank computed, by layer, a row once for each of its experts. Empty where the device
    /// does not tell.
    pub expert_rows: Vec<u32>,
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
