//! OpenAI's legacy completions: prompts without a conversation, continued as they are.
//!
//! No template is applied and nothing is parsed: what the model writes is the text, special tokens spelled out. In a
//! prompt of text spelled-out special tokens are text; a client that means them sends token ids.

mod response;

use deepseek_recipe::openai::chat_completion::request::{
    ChatCompletionRequest, ChatCompletionRequestContent, ChatCompletionRequestMessage,
    ChatCompletionStopSequences, ChatCompletionStreamOptions, ChatCompletionThinking, ThinkingType,
};
use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ProtocolRequest,
};
use deepseek_recipe::stream::{ParsingOptions, ThinkingInitialStage};
use deepseek_recipe_core::special_tokens::{SpecialToken, SpecialTokens};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::extras::{self, Extras, N_MAX};
use super::invalid::{self, Invalid, InvalidCode};
use super::protocol::{Asked, Place, Protocol, Request};
use super::request::check_n;
use crate::metric_definitions as names;
pub use response::{Completion, Generator};

#[cfg(test)]
mod tests;

/// Tokens of an answer whose length is not given.
pub const DEFAULT_MAX_TOKENS: u32 = 16;
/// Most alternatives that are reported for a token.
const LOGPROBS_MAX: u64 = 5;

/// Fields that a request may have.
const HANDLED: [&str; 13] = [
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "best_of",
];

/// The fields that can be read without their context; the others are in [`Extras`].
#[derive(Debug, Deserialize)]
pub struct CompletionRequest {
    model: String,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<u8>,
    stream: Option<bool>,
    stream_options: Option<ChatCompletionStreamOptions>,
    /// Alternatives to report for each token; 0 reports the token alone.
    logprobs: Option<u8>,
    stop: Option<ChatCompletionStopSequences>,
    seed: Option<u64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
}

/// Prompts that take the place of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// At least one.
    pub prompts: Vec<RawPrompt>,
    /// Whether text comes behind the token that begins a sequence.
    pub begin: bool,
    /// Whether an answer begins with its prompt.
    pub echo: bool,
}

/// A prompt that no template is applied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawPrompt {
    /// Text, in which special tokens are not recognised.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// Special tokens for parsing an answer in which none has a meaning: a marker that no tokenizer spells.
#[derive(Debug)]
struct Meaningless;

// === impl Request ===

impl Request<CompletionRequest> {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn from_slice(body: &[u8]) -> Result<Self, Invalid> {
        Self::from_fields(invalid::object(body)?)
    }

    /// Reads the fields of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, Invalid> {
        check_n(&fields)?;
        let mut extras = Extras::take(&mut fields)?;
        let raw = Raw {
            prompts: take_prompts(&mut fields)?,
            begin: extras::take(&mut fields, "add_special_tokens", extras::boolean)?
                .unwrap_or(true),
            echo: extras::take(&mut fields, "echo", extras::boolean)?.unwrap_or(false),
        };
        check_logprobs(&fields, raw.echo)?;
        check_best_of(&fields)?;
        invalid::refuse_unknown(&fields, &HANDLED)?;
        extras.raw = Some(raw);
        Ok(Self { body: invalid::typed(fields)?, extras, lease: None })
    }
}

/// A string, token ids, or an array of either.
fn take_prompts(fields: &mut Map<String, Value>) -> Result<Vec<RawPrompt>, Invalid> {
    let param = "prompt";
    let wrong = || {
        let what = "must be a string, an array of token ids, or an array of either";
        Invalid::new(InvalidCode::Type, param, what)
    };
    let prompts = match fields.shift_remove(param) {
        None | Some(Value::Null) => {
            return Err(Invalid::new(InvalidCode::Missing, param, "is required"));
        }
        Some(Value::Array(values)) if values.first().is_some_and(|it| !it.is_number()) => {
            values.into_iter().map(raw_prompt).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        Some(value) => vec![raw_prompt(value).ok_or_else(wrong)?],
    };
    if u32::try_from(prompts.len()).is_ok_and(|len| len <= N_MAX) {
        return Ok(prompts);
    }
    let what = format!("has {} prompts, but at most {N_MAX} are allowed", prompts.len());
    Err(Invalid::new(InvalidCode::Value, param, &what))
}

fn raw_prompt(value: Value) -> Option<RawPrompt> {
    match value {
        Value::String(text) => Some(RawPrompt::Text(text)),
        Value::Array(ids) => {
            let id = |id: Value| u32::try_from(id.as_u64()?).ok();
            ids.into_iter().map(id).collect::<Option<_>>().map(RawPrompt::Tokens)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn check_logprobs(fields: &Map<String, Value>, echo: bool) -> Result<(), Invalid> {
    let Some(logprobs) = fields.get("logprobs").and_then(Value::as_u64) else { return Ok(()) };
    if logprobs > LOGPROBS_MAX {
        let what = format!("is {logprobs}, but must be within 0..={LOGPROBS_MAX}");
        return Err(Invalid::new(InvalidCode::Value, "logprobs", &what));
    }
    if echo {
        let what = "excludes `echo`: this server has no log probabilities of prompts";
        return Err(Invalid::unsupported("logprobs", what));
    }
    Ok(())
}

/// Clients send `best_of` beside an equal `n`, which asks for nothing.
fn check_best_of(fields: &Map<String, Value>) -> Result<(), Invalid> {
    let of = |name| fields.get(name).and_then(Value::as_u64);
    match fields.get("best_of") {
        None | Some(Value::Null) => Ok(()),
        Some(_) if of("best_of") == Some(of("n").unwrap_or(1)) => Ok(()),
        Some(_) => Err(Invalid::unsupported("best_of", "is supported only when it equals `n`")),
    }
}

// === impl CompletionRequest ===

impl ProtocolRequest for CompletionRequest {
    type Response = Completion;

    /// The checks and the parameters of a chat completion that does not think.
    fn convert(self, options: ConversionOptions) -> Result<ConversationRequest, ConversionError> {
        // Not rendered: the prompts are in `Extras`.
        let message = ChatCompletionRequestMessage::User {
            content: ChatCompletionRequestContent::String(String::new()),
            name: None,
        };
        let chat = ChatCompletionRequest {
            messages: vec![message],
            model: self.model,
            frequency_penalty: self.frequency_penalty,
            logprobs: self.logprobs.map(|_| true),
            top_logprobs: self.logprobs,
            max_tokens: self.max_tokens,
            n: self.n,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
            stop: self.stop,
            stream: self.stream,
            stream_options: self.stream_options,
            temperature: self.temperature,
            top_p: self.top_p,
            response_format: None,
            tools: None,
            tool_choice: None,
            reasoning_effort: None,
            thinking: Some(ChatCompletionThinking {
                r#type: ThinkingType::Disabled,
                budget_tokens: None,
            }),
            parallel_tool_calls: None,
        };
        let mut converted = chat.convert(options)?;
        converted.parsing_options = ParsingOptions {
            parse_tool_calls: false,
            // The only stage that keeps newlines at the start.
            thinking_initial_stage: Some(ThinkingInitialStage::ContentContinuation),
            special_tokens: std::sync::Arc::new(Meaningless),
            ..converted.parsing_options
        };
        Ok(converted)
    }

    fn chunk_generator(request: &ConversationRequest, id: String, model: String) -> Generator {
        let chunks = ChatCompletionRequest::chunk_generator(request, id, model);
        Generator::new(chunks, request.inference_options.top_logprobs)
    }
}

impl Protocol for CompletionRequest {
    const ID_PREFIX: &'static str = "cmpl-";
    const OPERATION: &'static str = names::GEN_AI_OPERATION_TEXT_COMPLETION;
    const PROMPT: &'static str = "prompt";
    const FORMAT: &'static str = "response_format";

    fn model(&self) -> &str {
        &self.model
    }

    fn asked(&self) -> Asked {
        Asked {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            n: self.n,
            seed: self.seed,
            stream: self.stream,
        }
    }

    fn relax(&mut self, _: bool, extras: &mut Extras) -> Result<(), Invalid> {
        extras.presence_penalty = self.presence_penalty.unwrap_or(0.0);
        extras.frequency_penalty = self.frequency_penalty.unwrap_or(0.0);
        extras.n = self.n.take().map_or(1, u32::from);
        Ok(())
    }

    fn place(chunk: &mut Completion, place: Place<'_>) {
        chunk.place(place);
    }

    fn split_usage(chunk: &mut Completion) -> Option<Completion> {
        chunk.split_usage()
    }
}

// === impl Meaningless ===

impl SpecialTokens for Meaningless {
    fn token(&self, _: SpecialToken) -> &str {
        "\u{10FFFF}"
    }
}
