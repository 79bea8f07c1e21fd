//! Completions in the legacy form.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::{FinishReason, Usage};

/// A completion, whole or a piece of one.
#[derive(Debug, JsonSchema)]
pub struct Completion {
    /// `cmpl-` and 32 hex digits, the same in all chunks of an answer.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// Which files, arithmetic and version made it.
    pub system_fingerprint: Option<String>,
    /// `n` for each prompt, prompt by prompt; in a stream one, or none in the chunk that `include_usage` adds.
    pub choices: Vec<CompletionChoice>,
    /// What it took; in a stream in the chunk that `include_usage` adds, else in the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One of a request's texts, or a piece of it.
#[derive(Debug, JsonSchema)]
pub struct CompletionChoice {
    /// From 0.
    pub index: u32,
    /// What the model wrote, special tokens spelled out.
    pub text: String,
    /// With `logprobs`.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null until the last piece.
    pub finish_reason: Option<FinishReason>,
}

/// Log probabilities, in columns by token.
#[derive(Debug, JsonSchema)]
pub struct CompletionLogprobs {
    /// Each token's text.
    pub tokens: Vec<String>,
    /// Natural logarithm of each token's probability.
    pub token_logprobs: Vec<f32>,
    /// The token and its alternatives at each position; null when none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u64>,
}
