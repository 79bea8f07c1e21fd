//! Why a request gets no answer, whatever API it came through.

use super::invalid::Invalid;
use crate::auth;
use crate::engine::request::{GenerateError, SubmitError};

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
        "this model's maximum context length is {context_length} tokens, but the prompt has {}{prompt_tokens} and \
         max_tokens asks for {max_tokens}; shorten `{param}` or lower max_tokens",
        if *.is_exact { "" } else { "at least " }
    )]
    ContextLength {
        /// The field that the prompt is made of.
        param: &'static str,
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
    /// The client's key is not good for the request.
    #[error(transparent)]
    Denied(#[from] auth::Denied),
    /// The answer is complete, but its usage could not be recorded, so the client is not told of it.
    #[error(transparent)]
    Unrecorded(#[from] auth::ledger::Error),
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
            Self::Denied(denied) => denied.code(),
            Self::Unrecorded(_) => "usage_not_recorded",
            Self::Internal { .. } => "internal_error",
        }
    }
}

/// Wraps an error that is the server's own fault.
pub(crate) fn internal<E>(doing: &'static str) -> impl FnOnce(E) -> Error
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| Error::Internal { doing, source: source.into() }
}
