//! An answer being generated: tokens of the engine become chunks of the protocol.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use async_stream::stream;
use deepseek_recipe::request::ConversationRequest;
use deepseek_recipe::response::ProtocolResponse as _;
use deepseek_recipe::stream::{
    InferenceChunk, InferenceFinishReason, InferenceTokenLogprob, PromptUsage, StreamError,
    StreamProcessor,
};
use futures::stream::select_all;
use futures::{Stream, StreamExt as _};
use uuid::Uuid;

use super::bill::Bill;
use super::compat::Compat;
use super::protocol::{Chunk, Place, Protocol};
use super::usage::{Counted, Counts, Meter};
use super::{Error, Served, internal};
use crate::admission::Permit;
use crate::engine::request::{
    FinishReason, GenerateError, GenerateEvent, GeneratedToken, Generation,
};

/// Chunks of an answer in the form of the protocol that it was asked for in. They end as the protocol has it, or with
/// an error. Dropping it cancels the sequence.
pub struct Answer<P: Protocol> {
    id: String,
    model: String,
    prompt_usage: PromptUsage,
    usage_apart: bool,
    stream: bool,
    span: tracing::Span,
    chunks: Chunks<P>,
}

/// Chunks, and perhaps the error that ends the answer.
type Chunks<P> = Pin<Box<dyn Stream<Item = Result<Chunk<P>, Error>> + Send>>;

/// What an answer is made of.
pub(super) struct Parts {
    pub(super) served: Arc<Served>,
    pub(super) conversation: ConversationRequest,
    pub(super) compat: Compat,
    pub(super) prompt_usage: PromptUsage,
    /// In the order of their indices.
    pub(super) choices: Vec<Choice>,
    pub(super) permit: Permit,
    pub(super) bill: Bill,
}

/// One of the texts that an answer consists of.
pub(super) struct Choice {
    pub(super) generation: Generation,
    /// What goes before its text.
    pub(super) echo: Option<String>,
}

/// What those who see an answer's choices tell [`chunks`].
#[derive(Clone)]
struct Ends {
    failure: Arc<OnceLock<Failure>>,
    counts: Counts,
    meter: Arc<Meter>,
    bill: Bill,
}

/// Why tokens stopped coming without a finish.
#[derive(Debug)]
enum Failure {
    /// The engine gave up on the sequence.
    Generate(GenerateError),
    /// The engine went away without a word.
    Lost,
}

// === impl Answer ===

impl<P: Protocol> Answer<P> {
    pub(super) fn new(parts: Parts, meter: Meter) -> Self {
        let Parts { served, conversation, compat, prompt_usage, choices, permit, bill } = parts;
        let id = format!("{}{}", P::ID_PREFIX, Uuid::new_v4().simple());
        let model = served.model.id().to_owned();
        let ends = Ends {
            failure: Arc::default(),
            counts: Counts::new(choices.len(), prompt_usage),
            meter: Arc::new(meter),
            bill,
        };
        let mut echoes = BTreeMap::new();
        let choices = (0..).zip(choices).map(|(choice, Choice { generation, echo })| {
            echoes.extend(echo.map(|echo| (choice, echo)));
            let generator = P::chunk_generator(&conversation, id.clone(), model.clone());
            let generator = Counted::new(generator, ends.counts.clone());
            let ready = InferenceChunk::Ready {
                system_fingerprint: Some(served.model.system_fingerprint().to_owned()),
                prompt_usage,
            };
            StreamProcessor::new(generator, conversation.parsing_options.clone())
                .with_tokenizer(Arc::clone(served.model.tokenizer()))
                .into_protocol_stream(inference(ready, generation, choice, ends.clone()))
                .map(move |chunk| (choice, chunk))
                .boxed()
        });
        let choices = select_all(choices);
        let span = tracing::Span::current();
        span.record("gen_ai.response.id", id.as_str());
        span.record("gen_ai.response.model", model.as_str());
        let include_usage = conversation.response_options.include_usage;
        Self {
            id,
            model,
            prompt_usage,
            usage_apart: include_usage && compat == Compat::OpenAi,
            stream: conversation.stream,
            span,
            chunks: Box::pin(chunks::<P>(choices, echoes, ends, permit)),
        }
    }

    /// Id of the answer, as in each chunk.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Id of the model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the client wants usage in a chunk of its own.
    #[must_use]
    pub fn has_usage_apart(&self) -> bool {
        self.usage_apart
    }

    /// Whether the client asked for a stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// Waits for the end and puts the chunks together.
    ///
    /// # Errors
    /// The error that ended the answer; what was generated before is dropped.
    pub async fn collect(mut self) -> Result<P::Response, Error> {
        let PromptUsage { prompt_tokens, prompt_cache_hit_tokens } = self.prompt_usage;
        // The chunks bring the time.
        let created = 0;
        let mut response = P::Response::new(
            self.id.clone(),
            self.model.clone(),
            created,
            prompt_tokens,
            prompt_cache_hit_tokens,
        );
        while let Some(chunk) = self.next().await {
            P::accumulate(&mut response, chunk?);
        }
        Ok(response)
    }
}

impl<P: Protocol> Stream for Answer<P> {
    type Item = Result<Chunk<P>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        this.chunks.as_mut().poll_next(cx)
    }
}

impl<P: Protocol> std::fmt::Debug for Answer<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("id", &self.id)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// Gives each choice's chunks their place, and ends all of them where the engine failed one. Holds `permit` as long as
/// the answer lives.
///
/// The processor cannot carry an engine's failure: it would turn it into a finish. So the failure is left aside by
/// [`inference`] and looked at before each chunk goes out.
fn chunks<P: Protocol>(
    mut choices: impl Stream<Item = (u32, Result<Chunk<P>, StreamError>)> + Send + Unpin,
    mut echoes: BTreeMap<u32, String>,
    Ends { failure, counts, meter, bill }: Ends,
    permit: Permit,
) -> impl Stream<Item = Result<Chunk<P>, Error>> + Send {
    stream! {
        let _permit = permit;
        let mut is_finished = false;
        while let Some((choice, next)) = choices.next().await {
            let next = match failure.get() {
                Some(failure) => Err(failure.error()),
                None => next.map_err(internal("parsing the answer")),
            };
            match next {
                Ok(mut chunk) => {
                    // Before the chunk goes out: after the last one a client need not ask for more.
                    let finished = counts.finished();
                    let (last, echo) = (finished.is_some(), echoes.remove(&choice));
                    P::place(&mut chunk, Place { choice, last, echo: echo.as_deref() });
                    if let Some(finished) = finished.filter(|_| !is_finished) {
                        is_finished = true;
                        // Before the client hears of its usage.
                        if let Err(error) = bill.close(&finished).await {
                            meter.failed(&error);
                            yield Err(error);
                            break;
                        }
                        meter.finished(&finished);
                    }
                    yield Ok(chunk);
                }
                Err(error) => {
                    meter.failed(&error);
                    yield Err(error);
                    break;
                }
            }
        }
    }
}

/// The engine's events in the processor's terms. Ends without a finish only after a failure was left in `ends`.
fn inference(
    ready: InferenceChunk,
    mut generation: Generation,
    choice: u32,
    ends: Ends,
) -> impl Stream<Item = InferenceChunk> + Send {
    stream! {
        yield ready;
        loop {
            match generation.next().await {
                Some(GenerateEvent::Token(token)) => {
                    ends.meter.token(choice);
                    ends.bill.token();
                    yield tokens(token);
                }
                Some(GenerateEvent::Finished(reason)) => {
                    let finish_reason = match reason {
                        FinishReason::Stop => InferenceFinishReason::Stop,
                        FinishReason::Length => InferenceFinishReason::Length,
                    };
                    yield InferenceChunk::Finish { finish_reason };
                    break;
                }
                Some(GenerateEvent::Failed(error)) => {
                    // The first failure of any choice is the answer's.
                    let _ = ends.failure.set(Failure::Generate(error));
                    break;
                }
                None => {
                    let _ = ends.failure.set(Failure::Lost);
                    break;
                }
            }
        }
    }
}

fn tokens(token: GeneratedToken) -> InferenceChunk {
    let GeneratedToken { token_id, logprob, top_logprobs } = token;
    InferenceChunk::Tokens {
        token_ids: vec![token_id],
        logprobs: logprob.map(|logprob| vec![InferenceTokenLogprob { logprob, top_logprobs }]),
    }
}

// === impl Failure ===

impl Failure {
    fn error(&self) -> Error {
        match self {
            Self::Generate(error) => error.clone().into(),
            Self::Lost => {
                internal("generating: the engine stopped before the answer was complete")(
                    "the engine's event channel closed",
                )
            }
        }
    }
}
