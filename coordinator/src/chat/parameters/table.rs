//! The table itself, by theme. A schema states the range; what lies outside is a 400 that names the field.

use serde_json::json;

use super::{Facts, Parameter, shapes};

/// Most stop sequences of a request.
const STOP_SEQUENCES_MAX: u32 = 16;
/// Most answers to one request.
const CHOICES_MAX: u32 = 16;
/// Most alternatives reported for a token.
const TOP_LOGPROBS_MAX: u32 = 20;
/// Most tokens with a bias.
const LOGIT_BIAS_ENTRIES_MAX: u32 = 1024;
/// Seeds lie below this power of two.
const SEED_BITS: u32 = 63;

/// What is asked.
pub(super) fn text() -> Vec<Parameter> {
    vec![
        Parameter::new(
            "system_prompt",
            "System prompt",
            json!({ "type": "string" }),
            "How the model is to behave, for the whole conversation.",
        )
        .basic()
        .extension()
        .multiline(),
        Parameter::new(
            "prompt",
            "Prompt",
            json!({ "type": "string", "minLength": 1 }),
            "What the model is asked: one message of the user.",
        )
        .basic()
        .extension()
        .required()
        .multiline(),
        Parameter::new(
            "messages",
            "Messages",
            json!({ "type": "array", "minItems": 1, "items": shapes::message() }),
            "A whole conversation, instead of `prompt` and `system_prompt`.",
        ),
    ]
}

/// How long the answer is, and whether the model thinks first.
pub(super) fn length_and_thinking(facts: &Facts) -> Vec<Parameter> {
    let mut max_tokens = json!({ "type": "integer", "minimum": 1 });
    if let Some(context_length) = facts.context_length {
        max_tokens["maximum"] = context_length.into();
    }
    let kind = |kind: &str, title: &str| {
        json!({
            "title": title,
            "type": "object",
            "properties": { "type": { "type": "string", "const": kind } },
            "required": ["type"],
        })
    };
    let mut thinking =
        json!({ "oneOf": [kind("enabled", "Enabled"), kind("disabled", "Disabled")] });
    if let Some(default) = facts.default_thinking {
        thinking["default"] = json!({ "type": if default { "enabled" } else { "disabled" } });
    }
    vec![
        Parameter::new(
            "max_tokens",
            "Max tokens",
            max_tokens,
            "Most tokens of the answer, thinking included.",
        )
        .basic(),
        Parameter::new(
            "thinking",
            "Thinking",
            thinking,
            "Whether the model reasons before it answers.",
        )
        .basic()
        .extension(),
        Parameter::new(
            "reasoning_effort",
            "Reasoning effort",
            json!({
                "type": "string",
                "enum": ["none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max"],
            }),
            "How long the model reasons; `none` not at all. `thinking` wins over it.",
        )
        .basic(),
    ]
}

/// How tokens are drawn.
pub(super) fn sampling() -> Vec<Parameter> {
    vec![
        Parameter::new(
            "temperature",
            "Temperature",
            json!({ "type": "number", "minimum": 0, "maximum": 2, "default": 1 }),
            "How freely tokens are drawn; 0 always takes the likeliest.",
        )
        .basic(),
        Parameter::new(
            "top_p",
            "Top p",
            json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1 }),
            "Draw among the likeliest tokens that together have this probability. 1 is off.",
        ),
        Parameter::new(
            "top_k",
            "Top k",
            json!({ "type": "integer", "minimum": -1, "maximum": u32::MAX, "default": 0 }),
            "Draw among this many of the likeliest tokens. 0 is off, and so is -1.",
        )
        .extension(),
        Parameter::new(
            "min_p",
            "Min p",
            json!({ "type": "number", "minimum": 0, "maximum": 1, "default": 0 }),
            "Draw among tokens at least this share as likely as the likeliest. 0 is off.",
        )
        .extension(),
    ]
}

/// What is held for or against single tokens, and which draw it is.
pub(super) fn bias() -> Vec<Parameter> {
    let penalty = || json!({ "type": "number", "minimum": -2, "maximum": 2, "default": 0 });
    vec![
        Parameter::new(
            "presence_penalty",
            "Presence penalty",
            penalty(),
            "More than 0 makes tokens less likely that the answer already has.",
        ),
        Parameter::new(
            "frequency_penalty",
            "Frequency penalty",
            penalty(),
            "More than 0 makes tokens less likely the more often the answer has them.",
        ),
        Parameter::new(
            "seed",
            "Seed",
            json!({ "type": "integer", "minimum": 0, "maximum": (1_u64 << SEED_BITS) - 1 }),
            "The same seed and request give the same answer. Left out: random.",
        ),
        Parameter::new(
            "logit_bias",
            "Logit bias",
            json!({
                "type": "object",
                "propertyNames": { "pattern": "^[0-9]+$" },
                "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
                "maxProperties": LOGIT_BIAS_ENTRIES_MAX,
                "examples": [{ "100": -100, "200": 5 }],
            }),
            "Added to the logits of tokens, by token id: -100 forbids a token, 100 all but forces it.",
        ),
    ]
}

/// What the answer looks like.
pub(super) fn output() -> Vec<Parameter> {
    vec![
        Parameter::new(
            "stop",
            "Stop sequences",
            json!({ "oneOf": [
                { "type": "string", "minLength": 1 },
                {
                    "type": "array",
                    "items": { "type": "string", "minLength": 1 },
                    "maxItems": STOP_SEQUENCES_MAX,
                },
            ] }),
            "Texts that end the answer where they begin; up to 16.",
        ),
        Parameter::new(
            "n",
            "Choices",
            json!({ "type": "integer", "minimum": 1, "maximum": CHOICES_MAX, "default": 1 }),
            "How many answers are generated.",
        ),
        Parameter::new(
            "response_format",
            "Response format",
            shapes::response_format(),
            "What the answer must look like: free text, JSON, or what a schema, a regular expression or a grammar \
             allows.",
        ),
        Parameter::new(
            "logprobs",
            "Log probabilities",
            json!({ "type": "boolean", "default": false }),
            "Report the log probability of each token of the answer.",
        ),
        Parameter::new(
            "top_logprobs",
            "Top log probabilities",
            json!({ "type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX, "default": 0 }),
            "Report this many of the likeliest tokens at each position; needs `logprobs`.",
        ),
        Parameter::new(
            "stream",
            "Stream",
            json!({ "type": "boolean", "default": false }),
            "Send the answer in pieces, as server-sent events, while it is generated.",
        ),
        Parameter::new(
            "stream_options",
            "Stream options",
            json!({
                "type": "object",
                "properties": { "include_usage": { "type": "boolean", "default": false } },
            }),
            "With `include_usage` one more chunk at the end has the token usage; needs `stream`.",
        ),
    ]
}

/// What the model may call.
pub(super) fn tools() -> Vec<Parameter> {
    vec![
        Parameter::new(
            "tools",
            "Tools",
            json!({ "type": "array", "items": shapes::tool(), "examples": [shapes::example_tools()] }),
            "Functions that the model may call, with their parameters as JSON Schema.",
        ),
        Parameter::new(
            "tool_choice",
            "Tool choice",
            shapes::tool_choice(),
            "Whether the model may, must or must not call a tool, or which one it must call. Left out: auto with \
             tools, else none.",
        ),
        Parameter::new(
            "parallel_tool_calls",
            "Parallel tool calls",
            json!({ "type": "boolean", "default": true }),
            "Whether one answer may call several tools.",
        ),
    ]
}

/// What only concerns the client's own books.
pub(super) fn bookkeeping() -> Vec<Parameter> {
    vec![
        Parameter::new(
            "user",
            "User",
            json!({ "type": "string" }),
            "A name for your end user. No effect on the answer.",
        ),
        Parameter::new(
            "metadata",
            "Metadata",
            json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            "Labels for your own use. No effect on the answer.",
        ),
    ]
}

/// What no form shows.
pub(super) fn unlisted() -> Vec<Parameter> {
    let label = |name, title| {
        let description = "Accepted for OpenAI's clients. No effect on the answer.";
        Parameter::new(name, title, json!({ "type": "string" }), description).unlisted()
    };
    vec![
        Parameter::new(
            "max_completion_tokens",
            "Max completion tokens",
            json!({ "type": "integer", "minimum": 1 }),
            "Another name of `max_tokens`; both must agree if both are given.",
        )
        .unlisted(),
        Parameter::new(
            "ignore_eos",
            "Ignore end of sequence",
            json!({ "type": "boolean", "default": false }),
            "Generate up to `max_tokens` even past the end of the answer; for load tests.",
        )
        .extension()
        .unlisted(),
        label("safety_identifier", "Safety identifier"),
        label("prompt_cache_key", "Prompt cache key"),
        label("prompt_cache_retention", "Prompt cache retention"),
        label("service_tier", "Service tier"),
    ]
}
