//! What a chat request is measured by: the OpenTelemetry `gen_ai.server.*` histograms and the span's attributes.

use std::sync::{Mutex, PoisonError};

use deepseek_recipe::openai::chat_completion::response::{
    ChatCompletionChunk, ChatCompletionUsage,
};
use metrics::{Label, counter, histogram};
use tokio::time::Instant;

use super::Error;
use crate::metric_definitions as names;

/// Measures one request. Records when dropped, so that a client that hangs up is counted too.
#[derive(Debug)]
pub(super) struct Meter {
    model: String,
    started: Instant,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    num_tokens: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Neither end was reached: the client went away.
    Cancelled,
    Finished,
    Failed(&'static str),
}

// === impl Meter ===

impl Meter {
    pub(super) fn start(model: &str) -> Self {
        let progress = Progress {
            first_token: None,
            last_token: None,
            num_tokens: 0,
            outcome: Outcome::Cancelled,
        };
        Self { model: model.to_owned(), started: Instant::now(), progress: Mutex::new(progress) }
    }

    /// A token came from the engine.
    pub(super) fn token(&self) {
        let now = Instant::now();
        let mut progress = self.progress();
        progress.num_tokens += 1;
        progress.last_token = Some(now);
        if progress.first_token.is_none() {
            progress.first_token = Some(now);
            drop(progress);
            histogram!(names::GEN_AI_TIME_TO_FIRST_TOKEN, self.labels())
                .record(now.duration_since(self.started));
        }
    }

    /// A chunk goes out; the last one carries usage.
    pub(super) fn chunk(&self, chunk: &ChatCompletionChunk) {
        if let Some(Some(usage)) = &chunk.usage {
            self.progress().outcome = Outcome::Finished;
            self.finished(usage, chunk);
        }
    }

    fn finished(&self, usage: &ChatCompletionUsage, chunk: &ChatCompletionChunk) {
        let count = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
        counter!(names::PROMPT_TOKENS_TOTAL, names::MODEL => self.model.clone())
            .increment(count(usage.prompt_tokens));
        let span = tracing::Span::current();
        span.record("gen_ai.usage.output_tokens", usage.completion_tokens);
        span.record("gen_ai.response.id", chunk.id.as_str());
        let reason = chunk.choices.first().and_then(|choice| choice.finish_reason);
        if let Some(reason) = reason {
            span.record("gen_ai.response.finish_reasons", tracing::field::debug(reason));
        }
    }

    /// The answer ended with an error.
    pub(super) fn failed(&self, error: &Error) {
        self.progress().outcome = Outcome::Failed(error.code());
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
            Label::from_static_parts(names::GEN_AI_OPERATION, names::GEN_AI_OPERATION_CHAT),
            Label::from_static_parts(names::GEN_AI_PROVIDER, names::GEN_AI_PROVIDER_DEEPSEEK),
            Label::new(names::GEN_AI_REQUEST_MODEL, self.model.clone()),
        ]
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let ended = Instant::now();
        let Progress { first_token, last_token, num_tokens, outcome } = *self.progress();
        let mut labels = self.labels();
        if let (Some(first), Some(last)) = (first_token, last_token)
            && num_tokens > 1
        {
            let per_token = last.duration_since(first) / (num_tokens - 1);
            histogram!(names::GEN_AI_TIME_PER_OUTPUT_TOKEN, labels.clone()).record(per_token);
        }
        counter!(names::GENERATION_TOKENS_TOTAL, names::MODEL => self.model.clone())
            .increment(num_tokens.into());
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
