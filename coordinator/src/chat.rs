//! A chat request to prompt tokens, and tokens back to an answer. The HTTP and gRPC APIs both end here.
//!
//! - [`protocol`]: what the protocols of clients have in common.
//! - [`invalid`]: what is wrong with a request.
//! - [`request`]: the body of a chat completion, checked field by field.
//! - [`messages`]: the body of an Anthropic request.
//! - [`responses`]: the body of an OpenAI Responses request, and the responses that are kept.
//! - [`extras`]: what it may ask for beyond the family's own fields.
//! - [`completion`]: a prompt without a conversation.
//! - [`compat`]: whose API is kept to.
//! - [`parameters`]: what a request may say, as a table for forms and documents.
//! - [`model`]: a served model's tokenizer and limits.
//! - [`answer`]: the stream of chunks.
//! - [`usage`]: what a request is measured by.
//!
//! Prompt form and output parsing are those of deepseek-recipe. Where OpenAI's API and DeepSeek's differ, [`compat`]
//! says which one is kept to.

pub mod protocol;
pub mod invalid;
pub mod request;
pub mod messages;
pub mod responses;
pub mod extras;
pub mod completion;
pub mod compat;
pub mod parameters;
pub mod model;
pub mod answer;
pub mod usage;
mod bill;
mod constraint;
mod prepare;
mod error;

use std::fmt::Debug;
use std::sync::Arc;

use deepseek_recipe::stream::PromptUsage;
use futures::future::BoxFuture;
use indexmap::IndexMap;
use tokio::sync::{Semaphore, watch};
use tracing::Instrument as _;

use crate::admission::{Admission, Permit};
use crate::auth::Lease;
use crate::engine;
use crate::engine::request::{GenerateRequest, Generation, Priority, SamplingParams, SubmitError};
use crate::engine::status::GroupStatus;
use answer::{Answer, Choice, Parts};
use bill::Bill;
use compat::Compat;
pub use error::Error;
pub(crate) use error::internal;
use model::Model;
use prepare::Prepared;
use protocol::{Protocol, Request};
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
    /// Of a batch's requests, one at a time stands in that line.
    batch_renderer: Semaphore,
    compat: Compat,
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
            batch_renderer: Semaphore::new(1),
            compat: Compat::default(),
        }
    }

    /// Keeps to another API than [`Compat::default`]'s.
    #[must_use]
    pub fn with_compat(self, compat: Compat) -> Self {
        Self { compat, ..self }
    }

    /// Whose API it keeps to.
    #[must_use]
    pub fn compat(&self) -> Compat {
        self.compat
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

    /// The token ids that [`Self::start`] would send to the model, also when they are too many for it.
    ///
    /// # Errors
    /// As [`Self::start`], short of submission.
    pub async fn tokenize<P: Protocol>(&self, request: Request<P>) -> Result<Vec<u32>, Error> {
        let served = Arc::clone(self.model(request.body.model())?);
        let (conversation, _) = self.convert(&served, request)?;
        self.render(move || served.model.encode(&served.model.render(&conversation.conversation)))
            .await
    }

    /// The token ids of plain text, in which special tokens are not recognised; behind the token that begins a sequence
    /// when `begin`.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Internal`].
    pub async fn tokenize_text(
        &self,
        model: &str,
        text: String,
        begin: bool,
    ) -> Result<Vec<u32>, Error> {
        let served = Arc::clone(self.model(model)?);
        self.render(move || served.model.encode(&served.model.render_text(&text, begin))).await
    }

    /// The text of token ids, special tokens spelled out.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Invalid`] when the model does not have a token.
    pub async fn detokenize(&self, model: &str, token_ids: Vec<u32>) -> Result<String, Error> {
        let served = Arc::clone(self.model(model)?);
        served.model.check_tokens("tokens", &token_ids)?;
        self.render(move || served.model.decode(&token_ids)).await
    }

    /// Checks, renders and submits a request. Returns once it is queued; dropping the answer cancels it.
    ///
    /// # Errors
    /// See [`Error`]. Nothing reaches a worker then.
    pub async fn start<P: Protocol>(&self, request: Request<P>) -> Result<Answer<P>, Error> {
        let served = Arc::clone(self.model(request.body.model())?);
        let meter = Meter::start(P::OPERATION, served.model.id());
        match self.submit(&served, request).await {
            Ok(parts) => Ok(Answer::new(parts, meter)),
            Err(error) => {
                meter.refused(&error);
                Err(error)
            }
        }
    }

    async fn submit<P: Protocol>(
        &self,
        served: &Arc<Served>,
        mut request: Request<P>,
    ) -> Result<Parts, Error> {
        let lease = request.lease.take();
        let priority = lease.as_ref().map_or(Priority::Interactive, Lease::priority);
        let render =
            tracing::info_span!("prepare", gen_ai.usage.input_tokens = tracing::field::Empty);
        let Prepared { conversation, prompts, constraint, extras } =
            self.prepare_in_turn(served, request, priority).instrument(render.clone()).await?;
        let prompt_tokens = prompts.iter().map(|prompt| prompt.token_ids.len()).sum();
        // Signed, because OpenTelemetry has no other numbers.
        render.record("gen_ai.usage.input_tokens", prompt_tokens as i64);
        tracing::Span::current().record("gen_ai.usage.input_tokens", prompt_tokens as i64);
        let permit = tracing::info_span!("admission").in_scope(|| self.admit(priority))?;
        let mut bill = Bill::open(lease.as_ref(), served.model.id(), prompt_tokens)?;

        let sampling = extras.sampling(&conversation.inference_options);
        let stop_token_ids =
            if extras.ignore_eos { Vec::new() } else { vec![served.model.eos_token_id()] };
        let mut choices = Vec::new();
        for (prompt, choice) in
            prompts.iter().flat_map(|prompt| (0..extras.n).map(move |choice| (prompt, choice)))
        {
            // One that is refused takes those before it along: dropping them cancels them.
            let request = GenerateRequest {
                prompt: prompt.token_ids.clone(),
                sampling: SamplingParams { choice, ..sampling.clone() },
                max_tokens: prompt.max_tokens,
                stop_token_ids: stop_token_ids.clone(),
                constraint: constraint.clone(),
                priority,
            };
            let generation = match served.engine.submit(request).await {
                Ok(generation) => generation,
                Err(error) => {
                    bill.withdraw();
                    return Err(error.into());
                }
            };
            choices.push(Choice { generation, echo: prompt.echo.clone() });
        }
        Ok(Parts {
            served: Arc::clone(served),
            conversation,
            compat: self.compat,
            prompt_usage: PromptUsage { prompt_tokens, prompt_cache_hit_tokens: 0 },
            choices,
            permit,
            bill,
        })
    }

    async fn prepare_in_turn<P: Protocol>(
        &self,
        served: &Arc<Served>,
        request: Request<P>,
        priority: Priority,
    ) -> Result<Prepared, Error> {
        let _turn = match priority {
            Priority::Interactive => None,
            Priority::Batch => {
                Some(self.batch_renderer.acquire().await.map_err(internal("waiting to render"))?)
            }
        };
        self.prepare(served, request).await
    }

    fn admit(&self, priority: Priority) -> Result<Permit, Error> {
        self.admission
            .admit(priority)
            .ok_or(Error::Busy { in_flight_max: self.admission.in_flight_max() })
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
