//! Schemas of request bodies.
//!
//! A chat completion's is the whole table of its parameters. Those of the other dialects name their essential fields;
//! `docs/api.md` has them all. What they share with a chat completion comes out of the same table.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::chat::parameters;

/// How tokens are drawn, in every dialect.
const SAMPLING: [&str; 6] = ["temperature", "top_p", "top_k", "min_p", "logit_bias", "ignore_eos"];

/// A body of `POST /v1/chat/completions`.
#[derive(Debug)]
pub struct ChatCompletionRequest;

/// A body of `POST /v1/completions`.
#[derive(Debug)]
pub struct CompletionRequest;

/// A body of `POST /v1/messages`.
#[derive(Debug)]
pub struct MessagesRequest;

/// A body of `POST /v1/responses`.
#[derive(Debug)]
pub struct ResponsesRequest;

/// A body of `POST /v1/tokenize`.
#[derive(Debug)]
pub struct TokenizeRequest;

/// A body of `POST /v1/detokenize`.
#[derive(Debug)]
pub struct DetokenizeRequest;

/// A form of `POST /v1/files`.
#[derive(Debug)]
pub struct UploadForm;

/// An object with these fields and, of a chat completion's, those named in `shared`.
fn object(required: &[&str], shared: &[&str], own: Value) -> Schema {
    let mut properties = parameters::properties(shared);
    if let Value::Object(own) = own {
        properties.extend(own);
    }
    json_schema!({ "type": "object", "properties": properties, "required": required })
}

impl JsonSchema for UploadForm {
    fn schema_name() -> Cow<'static, str> {
        "UploadForm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "file": {
                    "type": "string",
                    "format": "binary",
                    "description": "JSON Lines: in each line `custom_id`, `method`, `url` and `body` of a request.",
                },
                "purpose": { "type": "string", "enum": ["batch"] },
                "expires_after[anchor]": { "type": "string", "enum": ["created_at"] },
                "expires_after[seconds]": { "type": "integer", "minimum": 3600, "maximum": 2_592_000 },
            },
            "required": ["file", "purpose"],
        })
    }
}

fn model() -> Value {
    json!({ "type": "string", "description": "Id of a served model, as `GET /v1/models` lists it." })
}

fn token_ids() -> Value {
    json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX } })
}

fn list_of_objects() -> Value {
    json!({ "type": "array", "items": { "type": "object" } })
}

// === impl ChatCompletionRequest ===

impl JsonSchema for ChatCompletionRequest {
    fn schema_name() -> Cow<'static, str> {
        "ChatCompletionRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::try_from(parameters::body_schema()).unwrap_or_default()
    }
}

// === impl CompletionRequest ===

impl JsonSchema for CompletionRequest {
    fn schema_name() -> Cow<'static, str> {
        "CompletionRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let shared = ["presence_penalty", "frequency_penalty", "seed", "stop", "n", "stream"];
        let shared = [&SAMPLING[..], &shared, &["stream_options"]].concat();
        let prompt = json!({
            "description": "What is continued: a text, token ids, or up to 16 of either.",
            "oneOf": [
                { "type": "string" },
                token_ids(),
                { "type": "array", "minItems": 1, "maxItems": 16,
                  "items": { "oneOf": [{ "type": "string" }, token_ids()] } },
            ],
        });
        object(
            &["model", "prompt"],
            &shared,
            json!({
                "model": model(),
                "prompt": prompt,
                "max_tokens": {
                    "type": "integer", "minimum": 1, "default": crate::chat::completion::DEFAULT_MAX_TOKENS,
                    "description": "Most tokens of each text.",
                },
                "logprobs": {
                    "type": "integer", "minimum": 0, "maximum": 5,
                    "description": "Log probabilities of each token and so many alternatives; not with `echo`.",
                },
                "echo": {
                    "type": "boolean", "default": false,
                    "description": "Whether each text begins with its prompt.",
                },
                "best_of": { "type": "integer", "description": "Only what `n` is." },
                "add_special_tokens": {
                    "type": "boolean", "default": true,
                    "description": "Whether the token that begins a sequence comes before a prompt of text.",
                },
            }),
        )
    }
}

// === impl MessagesRequest ===

impl JsonSchema for MessagesRequest {
    fn schema_name() -> Cow<'static, str> {
        "MessagesRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json!({ "oneOf": [{ "type": "string" }, list_of_objects()] });
        let message = json!({
            "type": "object",
            "properties": {
                "role": { "type": "string", "enum": ["user", "assistant", "system"] },
                "content": text,
            },
            "required": ["role", "content"],
        });
        let shared = [&SAMPLING[..], &["stream"]].concat();
        object(
            &["model", "messages"],
            &shared,
            json!({
                "model": model(),
                "messages": { "type": "array", "minItems": 1, "items": message },
                "system": text,
                "max_tokens": {
                    "type": "integer", "minimum": 1,
                    "description": "Most tokens of the answer, reasoning included.",
                },
                "stop_sequences": { "type": "array", "items": { "type": "string" }, "maxItems": 16 },
                "thinking": {
                    "type": "object",
                    "properties": {
                        "type": { "type": "string", "enum": ["enabled", "adaptive", "disabled"] },
                        "budget_tokens": { "type": "integer", "description": "Without effect." },
                    },
                    "required": ["type"],
                },
                "output_config": {
                    "type": "object",
                    "description": "`effort` of reasoning, and the `format` of the answer.",
                },
                "tools": list_of_objects(),
                "tool_choice": { "type": "object" },
                "metadata": { "type": "object", "description": "Without effect." },
            }),
        )
    }
}

// === impl ResponsesRequest ===

impl JsonSchema for ResponsesRequest {
    fn schema_name() -> Cow<'static, str> {
        "ResponsesRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let shared = [&SAMPLING[..], &["stream", "top_logprobs", "parallel_tool_calls"]].concat();
        object(
            &["model", "input"],
            &shared,
            json!({
                "model": model(),
                "input": {
                    "description": "What the model is asked: a text, or the items of a conversation.",
                    "oneOf": [{ "type": "string" }, list_of_objects()],
                },
                "instructions": { "type": "string", "description": "How the model is to behave." },
                "max_output_tokens": {
                    "type": "integer", "minimum": 1,
                    "description": "Most tokens of the answer, reasoning included.",
                },
                "reasoning": { "type": "object", "description": "Its `effort`." },
                "text": { "type": "object", "description": "The `format` of the answer." },
                "tools": list_of_objects(),
                "tool_choice": { "oneOf": [{ "type": "string" }, { "type": "object" }] },
                "store": {
                    "type": "boolean", "default": true,
                    "description": "Whether the response is kept for an hour.",
                },
                "background": {
                    "type": "boolean", "default": false,
                    "description": "Whether to answer at once and make the response meanwhile; not with `stream`.",
                },
                "previous_response_id": {
                    "type": "string", "description": "A kept response whose conversation goes on.",
                },
                "include": { "type": "array", "items": { "type": "string" } },
                "metadata": {
                    "type": "object", "maxProperties": 16, "additionalProperties": { "type": "string" },
                },
            }),
        )
    }
}

// === impl TokenizeRequest ===

impl JsonSchema for TokenizeRequest {
    fn schema_name() -> Cow<'static, str> {
        "TokenizeRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let prompt = object(
            &["model", "prompt"],
            &[],
            json!({
                "model": model(),
                "prompt": { "type": "string" },
                "add_special_tokens": {
                    "type": "boolean", "default": true,
                    "description": "Whether the token that begins a sequence comes first.",
                },
                "messages": { "type": "null" },
            }),
        );
        let chat = generator.subschema_for::<ChatCompletionRequest>();
        json_schema!({ "anyOf": [prompt, chat] })
    }
}

// === impl DetokenizeRequest ===

impl JsonSchema for DetokenizeRequest {
    fn schema_name() -> Cow<'static, str> {
        "DetokenizeRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        object(&["model", "tokens"], &[], json!({ "model": model(), "tokens": token_ids() }))
    }
}
