//! An answer being generated: tokens of the engine become chunks of the protocol.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use async_stream::stream;
use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::{
    ChatCompletionChunk, ChatCompletionResponse,
};
use deepseek_recipe::request::{ConversationRequest, ProtocolRequest as _};
use deepseek_recipe::response::{Accumulate as _, ProtocolResponse as _};
use deepseek_recipe::stream::{
    InferenceChunk, InferenceFinishReason, InferenceTokenLogprob, PromptUsage, StreamError,
    StreamProcessor,
};
use futures::{Stream, StreamExt as _};
use uuid::Uuid;

use super::usage::Meter;
use super::{Error, Served, internal};
use crate::admission::Permit;
use crate::engine::request::{
    FinishReason, GenerateError, GenerateEvent, GeneratedToken, Generation,
};

/// A chunk, or the error that ends the answer.
type Item = Result<ChatCompletionChunk, Error>;

/// Chunks of an answer. The last one carries `finish_reason` and usage, or is an error. Dropping it cancels the
/// sequence.
pub struct Answer {
    id: String,
    model: String,
    include_usage: bool,
    stream: bool,
    span: tracing::Span,
    chunks: Pin<Box<dyn Stream<Item = Item> + Send>>,
}

/// What an answer is made of.
pub(super) struct Parts {
    pub(super) served: Arc<Served>,
    pub(super) conversation: ConversationRequest,
    pub(super) prompt_usage: PromptUsage,
    pub(super) generation: Generation,
    pub(super) permit: Permit,
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

impl Answer {
    pub(super) fn new(parts: Parts, meter: Meter) -> Self {
        let Parts { served, conversation, prompt_usage, generation, permit } = parts;
        let id = format!("chatcmpl-{}", Uuid::new_v4().simple());
        let model = served.model.id().to_owned();
        let include_usage = conversation.response_options.include_usage;
        let stream = conversation.stream;
        let generator =
            ChatCompletionRequest::chunk_generator(&conversation, id.clone(), model.clone());
        let processor = StreamProcessor::new(generator, conversation.parsing_options)
            .with_tokenizer(Arc::clone(served.model.tokenizer()));
        let ready = InferenceChunk::Ready {
            system_fingerprint: Some(served.model.system_fingerprint().to_owned()),
            prompt_usage,
        };
        let failure = Arc::new(OnceLock::new());
        let meter = Arc::new(meter);
        let tokens = inference(ready, generation, Arc::clone(&failure), Arc::clone(&meter));
        let processed = processor.into_protocol_stream(tokens);
        let chunks = Box::pin(chunks(processed, failure, meter, permit));
        Self { id, model, include_usage, stream, span: tracing::Span::current(), chunks }
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

    /// Whether the client asked for `stream_options.include_usage`.
    #[must_use]
    pub fn include_usage(&self) -> bool {
        self.include_usage
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
    pub async fn collect(mut self) -> Result<ChatCompletionResponse, Error> {
        let mut response =
            ChatCompletionResponse::new(self.id.clone(), self.model.clone(), 0, 0, 0);
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            response.created = chunk.created;
            response.accumulate(chunk);
        }
        Ok(response)
    }
}

impl Stream for Answer {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        this.chunks.as_mut().poll_next(cx)
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("id", &self.id)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// Ends the processor's chunks where the engine failed. Holds `permit` as long as the answer lives.
///
/// The processor cannot carry an engine's failure: it would turn it into a finish. So the failure is left aside by
/// [`inference`] and looked at before each chunk goes out.
fn chunks(
    processed: impl Stream<Item = Result<ChatCompletionChunk, StreamError>> + Send,
    failure: Arc<OnceLock<Failure>>,
    meter: Arc<Meter>,
    permit: Permit,
) -> impl Stream<Item = Item> + Send {
    stream! {
        let _permit = permit;
        let mut processed = std::pin::pin!(processed);
        while let Some(next) = processed.next().await {
            let next = match failure.get() {
                Some(failure) => Err(failure.error()),
                None => next.map_err(internal("parsing the answer")),
            };
            match next {
                Ok(chunk) => {
                    meter.chunk(&chunk);
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

/// The engine's events in the processor's terms. Ends without a finish only after a failure was left in `failure`.
fn inference(
    ready: InferenceChunk,
    mut generation: Generation,
    failure: Arc<OnceLock<Failure>>,
    meter: Arc<Meter>,
) -> impl Stream<Item = InferenceChunk> + Send {
    stream! {
        yield ready;
        loop {
            match generation.next().await {
                Some(GenerateEvent::Token(token)) => {
                    meter.token();
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
                    // Set once: this is the only place, and the loop ends.
                    let _ = failure.set(Failure::Generate(error));
                    break;
                }
                None => {
                    let _ = failure.set(Failure::Lost);
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
