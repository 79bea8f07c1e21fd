//! Schemas of answers whose types are deepseek-recipe's, which do not describe themselves. Tests hold them against real
//! answers.

pub mod completions;
pub mod messages;
pub mod responses;

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A server-sent event whose data is a `T`, as JSON. An event stream is described by one of its events.
#[derive(Debug)]
pub struct Event<T>(PhantomData<T>);

impl<T: JsonSchema> JsonSchema for Event<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}Event", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "One event of the stream. The data of the last one of a complete answer is `[DONE]`.",
            "properties": {
                "data": {
                    "type": "string",
                    "anyOf": [
                        { "const": "[DONE]" },
                        {
                            "contentMediaType": "application/json",
                            "contentSchema": generator.subschema_for::<T>(),
                        },
                    ],
                },
            },
            "required": ["data"],
        })
    }
}

/// A server-sent event with a name, which its data, a `T` as JSON, has as `type`.
#[derive(Debug)]
pub struct NamedEvent<T>(PhantomData<T>);

impl<T: JsonSchema> JsonSchema for NamedEvent<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}Event", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "One event of the stream.",
            "properties": {
                "event": { "type": "string", "description": "The data's `type`." },
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": generator.subschema_for::<T>(),
                },
            },
            "required": ["event", "data"],
        })
    }
}

/// A whole answer.
#[derive(Debug, JsonSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-` and 32 hex digits.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// As many as `n` asked for, in the order of their index.
    pub choices: Vec<ChatCompletionChoice>,
    /// What it took.
    pub usage: Usage,
    /// Which files, arithmetic and version made it.
    pub system_fingerprint: Option<String>,
}

/// One of a request's answers.
#[derive(Debug, JsonSchema)]
pub struct ChatCompletionChoice {
    /// From 0.
    pub index: u32,
    /// What the model says.
    pub message: AssistantMessage,
    /// With `logprobs`.
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A message of the model.
#[derive(Debug, JsonSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// The answer; null when there are only tool calls.
    pub content: Option<String>,
    /// What the model thought before; absent without thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Functions to call; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
}

/// A call of a function.
#[derive(Debug, JsonSchema)]
pub struct ToolCall {
    /// Position among the answer's calls.
    pub index: u32,
    /// To be sent back with the result, as `tool_call_id`.
    pub id: String,
    /// `function`.
    pub r#type: String,
    /// What to call.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Debug, JsonSchema)]
pub struct FunctionCall {
    /// One of the request's tools.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

/// A piece of a streamed answer.
#[derive(Debug, JsonSchema)]
pub struct ChatCompletionChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// Which files, arithmetic and version made it.
    pub system_fingerprint: Option<String>,
    /// One; none in the chunk that `include_usage` adds.
    pub choices: Vec<ChunkChoice>,
    /// In the chunk that `include_usage` adds, else in the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A piece of one choice.
#[derive(Debug, JsonSchema)]
pub struct ChunkChoice {
    /// From 0.
    pub index: u32,
    /// What comes on top.
    pub delta: Delta,
    /// With `logprobs`.
    pub logprobs: Option<Logprobs>,
    /// Null until the last piece.
    pub finish_reason: Option<FinishReason>,
}

/// What a piece adds to a message.
#[derive(Debug, JsonSchema)]
pub struct Delta {
    /// In the first piece: `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// More of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of what the model thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The beginning of a call, or more of its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// A piece of a call; the first one has id, type and name.
#[derive(Debug, JsonSchema)]
pub struct ToolCallDelta {
    /// Which call it belongs to.
    pub index: u32,
    /// In the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the first piece: `function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// What comes on top.
    pub function: FunctionCallDelta,
}

/// A piece of a function call.
#[derive(Debug, JsonSchema)]
pub struct FunctionCallDelta {
    /// In the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// Why an answer ended.
#[derive(Debug, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done, or a stop sequence came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// Part of OpenAI's API; never sent.
    ContentFilter,
}

/// Log probabilities of the tokens.
#[derive(Debug, JsonSchema)]
pub struct Logprobs {
    /// Those of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<TokenLogprob>>,
    /// Those of the thinking before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<Vec<TokenLogprob>>,
}

/// One position.
#[derive(Debug, JsonSchema)]
pub struct TokenLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes: a token can be part of a character.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens here, likeliest first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that might have been.
#[derive(Debug, JsonSchema)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Option<Vec<u8>>,
}

/// Tokens of a request.
#[derive(Debug, JsonSchema)]
pub struct Usage {
    /// Tokens of the rendered conversation.
    pub prompt_tokens: u64,
    /// Tokens generated, thinking included, over all choices.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Prompt tokens that were found in the cache.
    pub prompt_cache_hit_tokens: u64,
    /// Prompt tokens that were computed.
    pub prompt_cache_miss_tokens: u64,
    /// More about the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// More about the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// More about the prompt.
#[derive(Debug, JsonSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens that were found in the cache.
    pub cached_tokens: u64,
}

/// More about the answer.
#[derive(Debug, JsonSchema)]
pub struct CompletionTokensDetails {
    /// Tokens of the thinking.
    pub reasoning_tokens: u64,
}
