//! OpenAI's Responses. What only gives a request's fields back is not described one by one.

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::TokenLogprob;

/// A response. It has the request's fields, too, as they were understood.
#[derive(Debug, JsonSchema)]
#[schemars(extend("additionalProperties" = true))]
pub struct Response {
    /// `resp_` and 32 hex digits.
    pub id: String,
    /// `response`.
    pub object: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; null until it is over.
    pub completed_at: Option<u64>,
    /// How far it is.
    pub status: ResponseStatus,
    /// Whether it is made without its client.
    pub background: bool,
    /// Whether it is kept.
    pub store: bool,
    /// Id of the model.
    pub model: String,
    /// Reasoning, messages and tool calls, in the order of their making.
    pub output: Vec<OutputItem>,
    /// Why it failed.
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// The response that it continues.
    pub previous_response_id: Option<String>,
    /// As sent.
    pub metadata: Map<String, Value>,
    /// What it took; null until it is over.
    pub usage: Option<ResponseUsage>,
}

/// How far a response, or an item of it, is.
#[derive(Debug, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// It is being made.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut off.
    Incomplete,
    /// It came to nothing more.
    Failed,
    /// It was stopped.
    Cancelled,
}

/// Why a response failed.
#[derive(Debug, JsonSchema)]
pub struct ResponseError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Debug, JsonSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: String,
}

/// An item of a response.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Text.
    Message {
        /// Its id.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// `assistant`.
        role: String,
        /// `commentary` before a tool call, else `final_answer`.
        phase: String,
        /// The text.
        content: Vec<ContentPart>,
    },
    /// What the model thought.
    Reasoning {
        /// Its id.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// The reasoning itself.
        content: Vec<ContentPart>,
        /// Empty.
        summary: Vec<Value>,
        /// Opaque.
        #[serde(skip_serializing_if = "Option::is_none")]
        encrypted_content: Option<String>,
    },
    /// A function to call.
    FunctionCall {
        /// Its id.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// To be sent back with the output.
        call_id: String,
        /// One of the request's functions.
        name: String,
        /// The function's namespace, where it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// A JSON object, as text.
        arguments: String,
    },
    /// A custom tool to call.
    CustomToolCall {
        /// Its id.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// To be sent back with the output.
        call_id: String,
        /// One of the request's tools.
        name: String,
        /// Text for the tool.
        input: String,
    },
}

/// A part of an item.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    /// Of a message.
    OutputText {
        /// Empty.
        annotations: Vec<Value>,
        /// Where they were asked for.
        logprobs: Vec<TokenLogprob>,
        /// The text.
        text: String,
    },
    /// Of reasoning.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// Tokens of a request.
#[derive(Debug, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens of the rendered conversation.
    pub input_tokens: u64,
    /// More about the prompt.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens generated, reasoning included.
    pub output_tokens: u64,
    /// More about the answer.
    pub output_tokens_details: OutputTokensDetails,
    /// Both.
    pub total_tokens: u64,
}

/// More about the prompt.
#[derive(Debug, JsonSchema)]
pub struct InputTokensDetails {
    /// Prompt tokens that were found in the cache.
    pub cached_tokens: u64,
}

/// More about the answer.
#[derive(Debug, JsonSchema)]
pub struct OutputTokensDetails {
    /// Tokens of the reasoning.
    pub reasoning_tokens: u64,
}

/// An event of a streamed response; its other fields depend on its type.
#[derive(Debug, JsonSchema)]
#[schemars(extend("additionalProperties" = true))]
pub struct ResponseStreamData {
    /// Such as `response.output_text.delta`. The last is `response.completed`, `.incomplete` or `.failed`.
    pub r#type: String,
    /// From 0.
    pub sequence_number: u64,
    /// In the first events and the last: the response as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
}

/// The count of a prompt's tokens.
#[derive(Debug, JsonSchema)]
pub struct InputTokens {
    /// `response.input_tokens`.
    pub object: String,
    /// The count.
    pub input_tokens: u64,
}

/// What is left of a deleted response.
#[derive(Debug, JsonSchema)]
pub struct DeletedResponse {
    /// Its id.
    pub id: String,
    /// `response`.
    pub object: String,
    /// True.
    pub deleted: bool,
}

/// A page of the conversation that a response answers.
#[derive(Debug, JsonSchema)]
pub struct ItemList {
    /// `list`.
    pub object: String,
    /// The items, as they were sent or made; each has an `id`.
    pub data: Vec<Map<String, Value>>,
    /// Id of the page's first item.
    pub first_id: Option<String>,
    /// Id of the page's last item, for `after`.
    pub last_id: Option<String>,
    /// Whether there are more.
    pub has_more: bool,
}
