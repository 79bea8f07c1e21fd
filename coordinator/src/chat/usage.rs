//! What a chat request is measured by: the OpenTelemetry `gen_ai.server.*` histograms and the span's attributes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use deepseek_recipe::stream::{
    ChunkGenerator, CompletionUsage, FinishReason, OutputChunk, PromptUsage,
};
use metrics::{Label, counter, histogram};
use opentelemetry::trace::Status;
use opentelemetry::{Array, Value};
use tokio::time::Instant;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::Error;
use crate::metric_definitions as names;

/// Attribute: why each choice ended. A list, which fields of spans cannot be.
const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";

/// What an answer came to, over all its choices, whatever its protocol makes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    /// Why each choice ended, in the order of their ends.
    pub(super) reasons: Vec<FinishReason>,
    /// Each prompt counted once.
    pub(super) prompt: PromptUsage,
    /// Summed.
    pub(super) completion: CompletionUsage,
}

/// Where [`Counted`] adds up what the choices of an answer came to.
#[derive(Clone, Debug)]
pub(super) struct Counts(Arc<Mutex<Tally>>);

#[derive(Debug)]
struct Tally {
    num_running: usize,
    finished: Finished,
}

/// The chunk generator of one choice. Notes what passes through it, and gives the last choice to end the usage of all.
#[derive(Debug)]
pub(super) struct Counted<G> {
    generator: G,
    counts: Counts,
}

/// Measures one request. Records when dropped, so that a client that hangs up is counted too.
#[derive(Debug)]
pub(super) struct Meter {
    operation: &'static str,
    model: String,
    started: Instant,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// By choice, as far as tokens came.
    choices: BTreeMap<u32, Tokens>,
    outcome: Outcome,
}

/// The tokens of one choice.
#[derive(Clone, Copy, Debug)]
struct Tokens {
    first: Instant,
    last: Instant,
    num: u32,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Neither end was reached: the client went away.
    Cancelled,
    Finished,
    Failed(&'static str),
}

// === impl Counted ===

impl<G> Counted<G> {
    pub(super) fn new(generator: G, counts: Counts) -> Self {
        Self { generator, counts }
    }
}

impl<G: ChunkGenerator> ChunkGenerator for Counted<G> {
    type Chunk = G::Chunk;

    fn generate(&mut self, mut chunk: OutputChunk) -> impl Future<Output = Vec<G::Chunk>> + Send {
        if let OutputChunk::Finish { finish_reason, completion_usage, .. } = &mut chunk
            && let Some(sum) = self.counts.add(*finish_reason, *completion_usage)
        {
            *completion_usage = sum;
        }
        self.generator.generate(chunk)
    }
}

// === impl Counts ===

impl Counts {
    /// For an answer of so many choices.
    pub(super) fn new(num_choices: usize, prompt: PromptUsage) -> Self {
        let finished = Finished { prompt, ..Finished::default() };
        Self(Arc::new(Mutex::new(Tally { num_running: num_choices, finished })))
    }

    /// A choice has ended. Returns the sum when it was the last.
    fn add(&self, reason: FinishReason, usage: CompletionUsage) -> Option<CompletionUsage> {
        let mut tally = self.tally();
        tally.num_running = tally.num_running.saturating_sub(1);
        tally.finished.reasons.push(reason);
        let sum = &mut tally.finished.completion;
        sum.completion_tokens += usage.completion_tokens;
        if let Some(tokens) = usage.reasoning_tokens {
            *sum.reasoning_tokens.get_or_insert(0) += tokens;
        }
        (tally.num_running == 0).then_some(tally.finished.completion)
    }

    /// What the answer came to, after the end of all choices.
    pub(super) fn finished(&self) -> Option<Finished> {
        let tally = self.tally();
        (tally.num_running == 0).then(|| tally.finished.clone())
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Meter ===

impl Meter {
    pub(super) fn start(operation: &'static str, model: &str) -> Self {
        let progress = Progress { choices: BTreeMap::new(), outcome: Outcome::Cancelled };
        Self {
            operation,
            model: model.to_owned(),
            started: Instant::now(),
            progress: Mutex::new(progress),
        }
    }

    /// A token of a choice came from the engine.
    pub(super) fn token(&self, choice: u32) {
        let now = Instant::now();
        let mut progress = self.progress();
        let is_first = progress.choices.is_empty();
        let tokens =
            progress.choices.entry(choice).or_insert(Tokens { first: now, last: now, num: 0 });
        tokens.num += 1;
        tokens.last = now;
        drop(progress);
        if is_first {
            histogram!(names::GEN_AI_TIME_TO_FIRST_TOKEN, self.labels())
                .record(now.duration_since(self.started));
        }
    }

    /// The answer is complete.
    pub(super) fn finished(&self, finished: &Finished) {
        self.progress().outcome = Outcome::Finished;
        let prompt_tokens = u64::try_from(finished.prompt.prompt_tokens).unwrap_or(u64::MAX);
        counter!(names::PROMPT_TOKENS_TOTAL, names::MODEL => self.model.clone())
            .increment(prompt_tokens);
        let span = tracing::Span::current();
        span.record("gen_ai.usage.output_tokens", finished.completion.completion_tokens as i64);
        let reasons = finished.reasons.iter().map(|reason| reason_name(*reason).into()).collect();
        span.set_attribute(FINISH_REASONS, Value::Array(Array::String(reasons)));
    }

    /// The answer ended with an error.
    pub(super) fn failed(&self, error: &Error) {
        self.progress().outcome = Outcome::Failed(error.code());
        let span = tracing::Span::current();
        span.set_attribute("error.type", error.code());
        span.set_status(Status::error(error.code()));
        tracing::warn!(error.type = error.code(), error = %Chain(error), "answer failed");
    }

    /// The request was refused before there was an answer.
    pub(super) fn refused(self, error: &Error) {
        self.progress().outcome = Outcome::Failed(error.code());
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels(&self) -> Vec<Label> {
        vec![
            Label::from_static_parts(names::GEN_AI_OPERATION, self.operation),
            Label::from_static_parts(names::GEN_AI_PROVIDER, names::GEN_AI_PROVIDER_DEEPSEEK),
            Label::new(names::GEN_AI_REQUEST_MODEL, self.model.clone()),
        ]
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let ended = Instant::now();
        let (choices, outcome) = {
            let mut progress = self.progress();
            (std::mem::take(&mut progress.choices), progress.outcome)
        };
        let mut labels = self.labels();
        let mut num_tokens = 0;
        for Tokens { first, last, num } in choices.into_values() {
            num_tokens += u64::from(num);
            if num > 1 {
                let per_token = last.duration_since(first) / (num - 1);
                histogram!(names::GEN_AI_TIME_PER_OUTPUT_TOKEN, labels.clone()).record(per_token);
            }
        }
        counter!(names::GENERATION_TOKENS_TOTAL, names::MODEL => self.model.clone())
            .increment(num_tokens);
        match outcome {
            Outcome::Finished => {}
            Outcome::Failed(kind) => labels.push(Label::from_static_parts(names::ERROR_TYPE, kind)),
            Outcome::Cancelled => {
                labels.push(Label::from_static_parts(names::ERROR_TYPE, names::ERROR_CANCELLED));
            }
        }
        histogram!(names::GEN_AI_REQUEST_DURATION, labels)
            .record(ended.duration_since(self.started));
    }
}

/// A reason as clients of OpenAI's API know it.
fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopSequence | FinishReason::EndOfStream => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}

/// An error and all its causes on one line, for logs.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
