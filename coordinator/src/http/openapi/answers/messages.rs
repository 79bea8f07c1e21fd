//! Anthropic's Messages.

use schemars::JsonSchema;
use serde_json::Value;

/// A whole answer.
#[derive(Debug, JsonSchema)]
pub struct Message {
    /// `msg_` and 32 hex digits.
    pub id: String,
    /// `message`.
    pub r#type: String,
    /// `assistant`.
    pub role: String,
    /// Id of the model.
    pub model: String,
    /// Reasoning, text and tool calls, in the order of their making.
    pub content: Vec<ContentBlock>,
    /// Why it ended; null until it has.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
    /// What it took.
    pub usage: MessageUsage,
}

/// A part of an answer.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// Reasoning.
    Thinking {
        /// The reasoning.
        thinking: String,
        /// Opaque.
        signature: String,
    },
    /// A tool to call.
    ToolUse {
        /// To be sent back with the result, as `tool_use_id`.
        id: String,
        /// One of the request's tools.
        name: String,
        /// The arguments.
        input: Value,
    },
}

/// Why an answer ended.
#[derive(Debug, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model was done.
    EndTurn,
    /// `max_tokens` were generated.
    MaxTokens,
    /// A stop sequence came.
    StopSequence,
    /// The model calls tools.
    ToolUse,
    /// Part of Anthropic's API; never sent.
    Refusal,
}

/// Tokens of a request.
#[derive(Debug, JsonSchema)]
pub struct MessageUsage {
    /// Prompt tokens that were computed.
    pub input_tokens: u64,
    /// 0: what is cached is not a client's to choose.
    pub cache_creation_input_tokens: u64,
    /// Prompt tokens that were found in the cache.
    pub cache_read_input_tokens: u64,
    /// Tokens generated, reasoning included.
    pub output_tokens: u64,
    /// `standard`.
    pub service_tier: String,
}

/// An event of a streamed answer.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageStreamData {
    /// The first one.
    MessageStart {
        /// Without content yet.
        message: Message,
    },
    /// A block begins.
    ContentBlockStart {
        /// Position in `content`.
        index: u32,
        /// Without what deltas bring.
        content_block: ContentBlock,
    },
    /// A block grows.
    ContentBlockDelta {
        /// Position in `content`.
        index: u32,
        /// What comes on top.
        delta: ContentBlockDelta,
    },
    /// A block is whole.
    ContentBlockStop {
        /// Position in `content`.
        index: u32,
    },
    /// The answer is over.
    MessageDelta {
        /// How it ended.
        delta: MessageEnd,
        /// What it took.
        usage: MessageUsage,
    },
    /// The last one of a complete answer.
    MessageStop,
    /// Nothing happened.
    Ping,
    /// The last one of an answer that failed.
    Error {
        /// What happened.
        error: AnthropicErrorObject,
    },
}

/// What a block gets.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentBlockDelta {
    /// More text.
    TextDelta {
        /// The piece.
        text: String,
    },
    /// More reasoning.
    ThinkingDelta {
        /// The piece.
        thinking: String,
    },
    /// The signature of a block of reasoning.
    SignatureDelta {
        /// Opaque.
        signature: String,
    },
    /// More of a tool's arguments.
    InputJsonDelta {
        /// A piece of JSON text.
        partial_json: String,
    },
}

/// How an answer ended.
#[derive(Debug, JsonSchema)]
pub struct MessageEnd {
    /// Why it ended.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
}

/// The body of an error response.
#[derive(Debug, JsonSchema)]
pub struct AnthropicError {
    /// `error`.
    pub r#type: String,
    /// What happened.
    pub error: AnthropicErrorObject,
    /// As in the header `request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What happened.
#[derive(Debug, JsonSchema)]
pub struct AnthropicErrorObject {
    /// The kind of fault, such as `invalid_request_error`.
    pub r#type: String,
    /// For people.
    pub message: String,
}
