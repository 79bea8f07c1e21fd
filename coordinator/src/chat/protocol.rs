//! What this server must know of a client's protocol beyond deepseek-recipe's conversion of it.

use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::{
    ChatCompletionChunk, ChatCompletionOutputTokenUsage, ChatCompletionResponse,
};
use deepseek_recipe::request::ProtocolRequest;
use deepseek_recipe::response::{Accumulate as _, ProtocolResponse};
use deepseek_recipe::stream::ChunkGenerator;
use serde::Serialize;

use super::compat;
use super::extras::Extras;
use super::invalid::Invalid;
use crate::auth::Lease;
use crate::metric_definitions as names;

/// What a protocol's streamed answers consist of.
pub type Chunk<P> =
    <<<P as ProtocolRequest>::Response as ProtocolResponse>::ChunkGenerator as ChunkGenerator>::Chunk;

/// A protocol whose requests [`Chat::start`](super::Chat::start) answers.
pub trait Protocol:
    ProtocolRequest<Response: ProtocolResponse<ChunkGenerator: ChunkGenerator<Chunk: Serialize + Send>>>
{
    /// What the ids of its answers begin with.
    const ID_PREFIX: &'static str;

    /// What its requests do, as OpenTelemetry names it.
    const OPERATION: &'static str = names::GEN_AI_OPERATION_CHAT;
    /// The field that holds its prompts.
    const PROMPT: &'static str;
    /// The field that says what the answer must be.
    const FORMAT: &'static str;

    /// Id of the model that is asked for.
    fn model(&self) -> &str;

    /// What it asks for, as far as the span of its request notes that.
    fn asked(&self) -> Asked;

    /// Takes out what conversion would drop or refuse, but this server does; see [`compat`].
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    fn relax(&mut self, default_thinking: bool, extras: &mut Extras) -> Result<(), Invalid>;

    /// Gives a chunk its place among those of other choices.
    fn place(chunk: &mut Chunk<Self>, place: Place<'_>)
    where
        Self: Sized,
    {
        let _ = (chunk, place);
    }

    /// Moves usage from the last chunk into one of its own, where the protocol has that form.
    fn split_usage(chunk: &mut Chunk<Self>) -> Option<Chunk<Self>>
    where
        Self: Sized,
    {
        let _ = chunk;
        None
    }

    /// Adds a chunk to the whole answer.
    fn accumulate(response: &mut Self::Response, chunk: Chunk<Self>)
    where
        Self: Sized,
    {
        response.accumulate(chunk);
    }
}

/// What a request asks for, of the attributes that OpenTelemetry names.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Share of the distribution that is drawn from.
    pub top_p: Option<f32>,
    /// Taken once for a token that the answer has.
    pub presence_penalty: Option<f32>,
    /// Taken for each time that the answer has a token.
    pub frequency_penalty: Option<f32>,
    /// Choices.
    pub n: Option<u8>,
    /// Of the sampling.
    pub seed: Option<u64>,
    /// Whether the answer is streamed.
    pub stream: Option<bool>,
}

/// Where a chunk belongs in an answer of several choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Index of the choice.
    pub choice: u32,
    /// Whether this is the end of all choices, so that usage may go out.
    pub last: bool,
    /// What precedes the choice's own text, with its first chunk.
    pub echo: Option<&'a str>,
}

/// A request of any protocol whose fields are known and typed. Values are checked against each other by conversion.
#[derive(Debug)]
pub struct Request<P> {
    /// The protocol's own fields.
    pub body: P,
    /// What it asks for beyond them.
    pub extras: Extras,
    /// Who pays; nobody if there is none.
    pub lease: Option<Lease>,
}

// === impl Request ===

impl<P> Request<P> {
    /// A request that asks for nothing beyond its protocol's fields.
    #[must_use]
    pub fn new(body: P) -> Self {
        Self { body, extras: Extras::default(), lease: None }
    }

    /// The request with the one who pays for it.
    #[must_use]
    pub fn paid_by(self, lease: Lease) -> Self {
        Self { lease: Some(lease), ..self }
    }
}

impl<P: Protocol> Request<P> {
    /// Notes the request's parameters on the current span, under their OpenTelemetry names.
    pub fn record_on_span(&self) {
        let asked = self.body.asked();
        let span = tracing::Span::current();
        // Numbers are signed, because OpenTelemetry has no others: these would become text.
        let top_k = Some(self.extras.top_k).filter(|&top_k| top_k > 0);
        span.record("gen_ai.operation.name", P::OPERATION);
        span.record("gen_ai.provider.name", names::GEN_AI_PROVIDER_DEEPSEEK);
        span.record("gen_ai.request.model", self.body.model());
        span.record("gen_ai.request.max_tokens", asked.max_tokens.map(i64::from));
        span.record("gen_ai.request.temperature", asked.temperature);
        span.record("gen_ai.request.top_p", asked.top_p);
        span.record("gen_ai.request.top_k", top_k.map(i64::from));
        span.record("gen_ai.request.presence_penalty", asked.presence_penalty);
        span.record("gen_ai.request.frequency_penalty", asked.frequency_penalty);
        span.record("gen_ai.request.choice.count", asked.n.map(i64::from));
        span.record("gen_ai.request.seed", asked.seed.map(|seed| seed as i64));
        span.record("gen_ai.request.stream", asked.stream);
    }
}

// === impl Protocol ===

impl Protocol for ChatCompletionRequest {
    const ID_PREFIX: &'static str = "chatcmpl-";
    const PROMPT: &'static str = "messages";
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

    fn relax(&mut self, default_thinking: bool, extras: &mut Extras) -> Result<(), Invalid> {
        compat::relax(self, default_thinking, extras)
    }

    fn place(chunk: &mut ChatCompletionChunk, Place { choice: index, last, .. }: Place<'_>) {
        for choice in &mut chunk.choices {
            choice.index = index;
        }
        match &mut chunk.usage {
            // Clients expect a number, also without thinking.
            Some(Some(usage)) if last => {
                usage
                    .completion_tokens_details
                    .get_or_insert(ChatCompletionOutputTokenUsage { reasoning_tokens: 0 });
            }
            // Of this choice alone; the last one has the sum.
            Some(Some(_)) => chunk.usage = None,
            Some(None) | None => {}
        }
    }

    fn split_usage(chunk: &mut ChatCompletionChunk) -> Option<ChatCompletionChunk> {
        let usage = chunk.usage.get_or_insert(None).take()?;
        Some(ChatCompletionChunk {
            id: chunk.id.clone(),
            object: chunk.object,
            created: chunk.created,
            model: chunk.model.clone(),
            system_fingerprint: chunk.system_fingerprint.clone(),
            choices: Vec::new(),
            usage: Some(Some(usage)),
        })
    }

    fn accumulate(response: &mut ChatCompletionResponse, chunk: ChatCompletionChunk) {
        response.created = chunk.created;
        response.accumulate(chunk);
        // Choices begin in any order.
        response.choices.sort_by_key(|choice| choice.index);
    }
}
