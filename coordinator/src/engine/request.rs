//! What the front end asks of the engine, and what it gets back.

use std::sync::Arc;
use std::time::Duration;

use switchyard_grammar::Grammar;
use tokio::sync::{Notify, mpsc};

pub use crate::scheduler::Priority;

/// One sequence to generate. Checked: the prompt is not empty, its ids are below the vocabulary size, and
/// `prompt.len() + max_tokens` fits the model's context.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Most tokens to generate, at least 1.
    pub max_tokens: u32,
    /// Tokens that end the answer; not part of it.
    pub stop_token_ids: Vec<u32>,
    /// What the answer must look like.
    pub constraint: Option<Arc<Constraint>>,
    /// Whom it goes before.
    pub priority: Priority,
}

/// What an answer must look like. The worker lets no other token be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// The grammar. It has been compiled once, so it is known to compile.
    pub grammar: Grammar,
    /// The token after which the grammar holds, such as `</think>`; `None` when it holds from the first token on.
    pub after: Option<u32>,
    /// Tokens that may not be drawn before that.
    pub forbidden_before: Vec<u32>,
}

/// Sampling parameters of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// 1 means off.
    pub top_p: f32,
    /// Draw among this many most likely tokens; 0 means off.
    pub top_k: u32,
    /// Draw among tokens at least this share as likely as the most likely one; 0 means off.
    pub min_p: f32,
    /// Taken once from the logit of every token that the answer has, -2..=2.
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time that the answer has it, -2..=2.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, by ascending id, each id once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Index of the choice among the request's `n`.
    pub choice: u32,
    /// Whether log probabilities are reported.
    pub logprobs: bool,
    /// Most likely alternatives to report, 0..=20.
    pub num_top_logprobs: u32,
}

/// What a running sequence tells its owner, in order. The last one is `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateEvent {
    /// One more token of the answer.
    Token(GeneratedToken),
    /// The answer is complete.
    Finished(FinishReason),
    /// The answer cannot be completed.
    Failed(GenerateError),
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability, when asked for.
    pub logprob: Option<f32>,
    /// Most likely tokens with their log probabilities, most likely first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    Stop,
    /// `max_tokens` were generated.
    Length,
}

/// Why an accepted sequence could not be completed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The model's group lost a rank and could not be re-formed in time.
    #[error("model group unavailable: {0}")]
    GroupLost(String),
    /// The worker could not follow the answer's grammar any further.
    #[error(
        "the answer's format became too expensive to enforce: {0}; simplify response_format or the tools' parameters"
    )]
    Constraint(String),
    /// The coordinator is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a request is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The waiting queue is full.
    #[error("{waiting} requests are already waiting, which is the limit; retry after {} s", .retry_after.as_secs())]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// No group serves the model at the moment.
    #[error("the model is not ready: {reason}; retry after {} s", .retry_after.as_secs())]
    NotReady {
        /// What it waits for.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The sequence could grow past what a rank can hold.
    #[error(
        "prompt and answer may need {needed} tokens, but the workers have room for {available} per request: shorten \
         the prompt or lower `max_tokens`"
    )]
    TooLong {
        /// Tokens of the prompt and the longest possible answer.
        needed: usize,
        /// Tokens that one sequence may have.
        available: usize,
    },
}

/// A sequence being generated. Dropping it cancels the sequence; its blocks are free within one step.
///
/// Events wait here until they are read, at most `max_tokens` and the end: a slow reader holds up nobody, and
/// holds no KV blocks once its answer is complete.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<GenerateEvent>,
    /// Wakes the engine, which may sleep, to look for sequences whose reader is gone.
    hangup: Option<Arc<Notify>>,
}

// === impl SamplingParams ===

impl Default for SamplingParams {
    /// Plain sampling from the model's distribution, with seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
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

// === impl Generation ===

impl Generation {
    /// Wraps the receiving end of a sequence's events.
    #[must_use]
    pub fn new(events: mpsc::Receiver<GenerateEvent>) -> Self {
        Self { events, hangup: None }
    }

    /// As [`new`](Self::new); `hangup` is notified when the reader goes away.
    #[must_use]
    pub(super) fn with_hangup(events: mpsc::Receiver<GenerateEvent>, hangup: Arc<Notify>) -> Self {
        Self { events, hangup: Some(hangup) }
    }

    /// The next event; `None` after `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<GenerateEvent> {
        self.events.recv().await
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // Closed first: the engine, once woken, must find it so.
        self.events.close();
        if let Some(hangup) = &self.hangup {
            hangup.notify_one();
        }
    }
}
