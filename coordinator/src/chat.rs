//! A chat request to prompt tokens, and tokens back to an answer. The HTTP and gRPC APIs both end here.
//!
//! - [`request`]: the body, checked field by field.
//! - [`model`]: a served model's tokenizer and limits.
//! - [`answer`]: the stream of chunks.
//! - [`usage`]: what a request is measured by.
//!
//! Prompt form, sampling rules and output parsing are those of deepseek-recipe: thinking fixes the temperature at 1,
//! and `top_p` at 1, or 0.95 with tools. `response_format: json_object` is an instruction in the prompt, and its
//! output is cut to the JSON part, but decoding is not constrained yet; formats that promise more are refused.

pub mod request;
pub mod model;
pub mod answer;
pub mod usage;
mod constraint;

use std::fmt::Debug;
use std::sync::Arc;

use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ModelVersion, ProtocolRequest as _,
};
use deepseek_recipe::stream::PromptUsage;
use futures::future::BoxFuture;
use indexmap::IndexMap;
use rand::Rng as _;
use tokio::sync::{Semaphore, watch};
use tracing::Instrument as _;

use crate::admission::{Admission, Permit};
use crate::engine;
use crate::engine::request::{
    GenerateError, GenerateRequest, Generation, SamplingParams, SubmitError,
};
use crate::engine::status::GroupStatus;
use answer::{Answer, Parts};
use model::Model;
use request::{ChatRequest, Invalid};
use usage::Meter;

#[cfg(test)]
mod tests;

/// What the client APIs need of a model's engine. Tests script it.
pub trait Generate: Debug + Send + Sync + 'static {
    /// Queues a sequence.
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>>;

    /// The group's status, now and later.
    fn watch(&self) -> watch::Receiver<GroupStatus>;
}

impl Generate for engine::Handle {
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        Box::pin(Self::submit(self, request))
    }

    fn watch(&self) -> watch::Receiver<GroupStatus> {
        Self::watch(self)
    }
}

/// A model and the engine that runs it.
#[derive(Debug)]
pub struct Served {
    /// The model's files, checked.
    pub model: Model,
    /// The model's group.
    pub engine: Arc<dyn Generate>,
}

/// The models of a coordinator, ready to answer.
#[derive(Debug)]
pub struct Chat {
    models: IndexMap<String, Arc<Served>>,
    admission: Admission,
    /// Rendering a long prompt keeps a core busy, so no more run at once than there are cores.
    renderers: Arc<Semaphore>,
}

/// Why a chat request gets no answer, or only part of one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field has a value that cannot be served.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No served model has this id.
    #[error("the model `{model}` does not exist; this server has {}", .served.join(", "))]
    UnknownModel {
        /// As asked for.
        model: String,
        /// Ids that would do.
        served: Vec<String>,
    },
    /// Prompt and answer do not fit the context.
    #[error(
        "this model's maximum context length is {context_length} tokens, but the messages have {}{prompt_tokens} and \
         max_tokens asks for {max_tokens}; shorten the messages or lower max_tokens",
        if *.is_exact { "" } else { "at least " }
    )]
    ContextLength {
        /// Tokens of the longest sequence.
        context_length: u32,
        /// Tokens of the rendered prompt.
        prompt_tokens: usize,
        /// Whether they were counted; a prompt far too long is not.
        is_exact: bool,
        /// Tokens asked for, at least 1.
        max_tokens: u32,
    },
    /// The server has its fill of requests.
    #[error(
        "{in_flight_max} requests are already in flight, which is this server's limit; retry after 1 s"
    )]
    Busy {
        /// The limit.
        in_flight_max: usize,
    },
    /// The engine refused the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine gave up on a running answer.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Nothing the client could have done differently.
    #[error("internal error while {doing}")]
    Internal {
        /// What was being done.
        doing: &'static str,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A request that is rendered and sampled, but not yet submitted.
struct Prepared {
    conversation: ConversationRequest,
    prompt: Vec<u32>,
    max_tokens: u32,
}

/// Length of a prompt.
enum PromptTokens {
    AtLeast(usize),
    Exactly(usize),
}

// === impl Served ===

impl Served {
    /// Whether a request sent now will be served.
    #[must_use]
    pub fn is_routable(&self) -> bool {
        self.engine.watch().borrow().phase.is_routable()
    }

    /// Longest sequence, prompt and answer together, in tokens: what the model takes and its group has room for.
    #[must_use]
    pub fn context_length(&self) -> u32 {
        let room = self.engine.watch().borrow().max_model_len;
        u32::try_from(room).unwrap_or(u32::MAX).min(self.model.context_length())
    }
}

// === impl Error ===

impl Error {
    /// The `code` of OpenAI's error object and the `error.type` of metrics and spans.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(invalid) => invalid.code.as_str(),
            Self::UnknownModel { .. } => "model_not_found",
            Self::ContextLength { .. } | Self::Submit(SubmitError::TooLong { .. }) => {
                "context_length_exceeded"
            }
            Self::Busy { .. } | Self::Submit(SubmitError::QueueFull { .. }) => {
                "rate_limit_exceeded"
            }
            Self::Submit(SubmitError::NotReady { .. }) => "model_not_ready",
            Self::Generate(GenerateError::GroupLost(_)) => "model_unavailable",
            Self::Generate(GenerateError::Constraint(_)) => "constraint_too_complex",
            Self::Generate(GenerateError::ShuttingDown) => "shutting_down",
            Self::Internal { .. } => "internal_error",
        }
    }
}

// === impl Chat ===

impl Chat {
    /// Serves `models`, with at most `in_flight_max` requests at once.
    #[must_use]
    pub fn new(models: Vec<Served>, in_flight_max: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            models: models
                .into_iter()
                .map(|served| (served.model.id().to_owned(), Arc::new(served)))
                .collect(),
            admission: Admission::new(in_flight_max),
            renderers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The served models, in the order of the options.
    pub fn models(&self) -> impl Iterator<Item = &Served> {
        self.models.values().map(AsRef::as_ref)
    }

    /// The served model with this id.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn model(&self, id: &str) -> Result<&Arc<Served>, Error> {
        self.models.get(id).ok_or_else(|| Error::UnknownModel {
            model: id.to_owned(),
            served: self.models.keys().cloned().collect(),
        })
    }

    /// The token ids that [`Self::start`] would send to the model.
    ///
    /// # Errors
    /// As [`Self::start`], short of submission.
    pub async fn tokenize(&self, request: ChatRequest) -> Result<Vec<u32>, Error> {
        let served = self.model(&request.body.model)?;
        Ok(self.prepare(served, request).await?.prompt)
    }

    /// The token ids of plain text, in which special tokens are not recognised.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Internal`].
    pub async fn tokenize_text(&self, model: &str, text: String) -> Result<Vec<u32>, Error> {
        let served = Arc::clone(self.model(model)?);
        self.render(move || served.model.encode_text(&text)).await
    }

    /// Checks, renders and submits a request. Returns once it is queued; dropping the answer cancels it.
    ///
    /// # Errors
    /// See [`Error`]. Nothing reaches a worker then.
    pub async fn start(&self, request: ChatRequest) -> Result<Answer, Error> {
        let served = Arc::clone(self.model(&request.body.model)?);
        let meter = Meter::start(served.model.id());
        match self.submit(&served, request).await {
            Ok(parts) => Ok(Answer::new(parts, meter)),
            Err(error) => {
                meter.refused(&error);
                Err(error)
            }
        }
    }

    async fn submit(&self, served: &Arc<Served>, request: ChatRequest) -> Result<Parts, Error> {
        let seed = request.body.seed;
        let stop_token_ids =
            if request.ignore_eos { Vec::new() } else { vec![served.model.eos_token_id()] };
        let render =
            tracing::info_span!("chat.render", gen_ai.usage.input_tokens = tracing::field::Empty);
        let Prepared { conversation, prompt, max_tokens } =
            self.prepare(served, request).instrument(render.clone()).await?;
        render.record("gen_ai.usage.input_tokens", prompt.len());
        let permit = tracing::info_span!("admission").in_scope(|| self.admit())?;

        let options = &conversation.inference_options;
        let sampling = SamplingParams {
            temperature: options.temperature.unwrap_or(1.0),
            top_p: options.top_p.unwrap_or(1.0),
            seed: seed.unwrap_or_else(|| rand::rng().random()),
            choice: 0,
            logprobs: options.logprobs,
            num_top_logprobs: options.top_logprobs.unwrap_or(0).into(),
            ..SamplingParams::default()
        };
        tracing::Span::current().record("gen_ai.usage.input_tokens", prompt.len());
        let prompt_usage = PromptUsage { prompt_tokens: prompt.len(), prompt_cache_hit_tokens: 0 };
        let generation = served
            .engine
            .submit(GenerateRequest {
                prompt,
                sampling,
                max_tokens,
                stop_token_ids,
                constraint: None,
            })
            .instrument(tracing::info_span!("engine.submit"))
            .await?;
        Ok(Parts { served: Arc::clone(served), conversation, prompt_usage, generation, permit })
    }

    fn admit(&self) -> Result<Permit, Error> {
        self.admission.admit().ok_or(Error::Busy { in_flight_max: self.admission.in_flight_max() })
    }

    async fn prepare(&self, served: &Arc<Served>, request: ChatRequest) -> Result<Prepared, Error> {
        let conversation =
            request.body.convert(conversion_options(&served.model)).map_err(conversion_error)?;
        let served = Arc::clone(served);
        self.render(move || {
            let context_length = served.context_length();
            let rendered = served.model.render(&conversation.conversation);
            // Counting the tokens of megabytes takes long; that they are too many can be plain before.
            let tokens_min = served.model.tokens_min(&rendered);
            max_tokens(&conversation, PromptTokens::AtLeast(tokens_min), context_length)?;
            let prompt = served.model.encode(&rendered)?;
            let prompt_tokens = PromptTokens::Exactly(prompt.len());
            let max_tokens = max_tokens(&conversation, prompt_tokens, context_length)?;
            Ok(Prepared { conversation, prompt, max_tokens })
        })
        .await
    }

    /// Runs something that keeps a core busy for longer than a task may keep its thread. It keeps its turn even when the
    /// client has gone, because it goes on, too.
    async fn render<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let renderers = Arc::clone(&self.renderers);
        let turn = renderers.acquire_owned().await.map_err(internal("waiting to render"))?;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        })
        .await
        .map_err(internal("rendering the prompt"))?
    }
}

fn conversion_options(model: &Model) -> ConversionOptions {
    // The bound on `max_tokens` is the model's context, checked once the prompt is counted.
    ConversionOptions::new()
        .with_model_versions_by_name([(model.id(), ModelVersion::DeepseekV4Pro)])
        .with_default_thinking_mode(model.default_thinking())
        .with_thinking_max_tokens_upper_bound(u32::MAX)
        .with_non_thinking_max_tokens_upper_bound(u32::MAX)
}

fn conversion_error(error: ConversionError) -> Error {
    match error {
        ConversionError::BadRequest { detail } => Invalid::from_detail(detail).into(),
        ConversionError::Internal { detail } => {
            Error::Internal { doing: "converting the request", source: detail.into() }
        }
    }
}

/// Tokens that the answer may have: as asked for, else the family's default cut to what the context leaves.
fn max_tokens(
    conversation: &ConversationRequest,
    prompt_tokens: PromptTokens,
    context_length: u32,
) -> Result<u32, Error> {
    let max_tokens = conversation.inference_options.max_tokens.unwrap_or(1);
    let (prompt_tokens, is_exact) = match prompt_tokens {
        PromptTokens::AtLeast(tokens) => (tokens, false),
        PromptTokens::Exactly(tokens) => (tokens, true),
    };
    let too_long = || Error::ContextLength { context_length, prompt_tokens, is_exact, max_tokens };
    let prompt = u32::try_from(prompt_tokens).map_err(|_| too_long())?;
    if prompt.checked_add(max_tokens).is_none_or(|total| total > context_length) {
        return Err(too_long());
    }
    conversation.resolve_max_tokens(prompt, context_length).map_err(|_| too_long())
}

/// Wraps an error that is the server's own fault.
pub(crate) fn internal<E>(doing: &'static str) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| Error::Internal { doing, source: source.into() }
}
