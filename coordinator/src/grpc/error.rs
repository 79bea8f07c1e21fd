//! Errors of the gRPC API as `tonic::Status`.

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::chat::usage::Chain;
use crate::engine::request::{GenerateError, SubmitError};
use crate::{auth, chat};

/// Metadata with what the HTTP API calls `code`.
const ERROR_CODE: &str = "error-code";
/// Metadata with what the HTTP API calls `param`.
const ERROR_PARAM: &str = "error-param";
/// Metadata with the seconds to wait before another try.
const RETRY_AFTER: &str = "retry-after";
/// When to retry where the engine does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Why a call gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key was sent.
    #[error("no API key was sent; send it as metadata `authorization: Bearer KEY`")]
    MissingKey,
    /// The holder of the key may not do this, or not now.
    #[error(transparent)]
    Denied(#[from] auth::Denied),
    /// The keys cannot be looked up.
    #[error(transparent)]
    Keys(#[from] auth::Error),
    /// The chat cannot be served.
    #[error(transparent)]
    Chat(#[from] chat::Error),
}

// === impl Error ===

impl Error {
    /// The one place that decides how an error is answered: status, code, and when to retry.
    fn answer(&self) -> (Code, &'static str, Option<Duration>) {
        use chat::Error as Chat;
        let error = match self {
            Self::MissingKey => return (Code::Unauthenticated, "invalid_api_key", None),
            Self::Denied(denied) => {
                return (denied_code(denied), denied.code(), denied.retry_after());
            }
            Self::Keys(_) => return (Code::Internal, "internal_error", None),
            Self::Chat(error) => error,
        };
        let (code, retry_after) = match error {
            Chat::Invalid(_)
            | Chat::ContextLength { .. }
            | Chat::Submit(SubmitError::TooLong { .. }) => (Code::InvalidArgument, None),
            Chat::UnknownModel { .. } => (Code::NotFound, None),
            Chat::Busy { .. } => (Code::ResourceExhausted, Some(RETRY_AFTER_DEFAULT)),
            Chat::Submit(SubmitError::QueueFull { retry_after, .. }) => {
                (Code::ResourceExhausted, Some(*retry_after))
            }
            Chat::Submit(SubmitError::NotReady { retry_after, .. }) => {
                (Code::Unavailable, Some(*retry_after))
            }
            Chat::Generate(GenerateError::Constraint(_)) => (Code::InvalidArgument, None),
            Chat::Generate(GenerateError::GroupLost(_) | GenerateError::ShuttingDown) => {
                (Code::Unavailable, Some(RETRY_AFTER_DEFAULT))
            }
            Chat::Denied(denied) => (denied_code(denied), denied.retry_after()),
            Chat::Unrecorded(_) => (Code::Unavailable, Some(RETRY_AFTER_DEFAULT)),
            Chat::Internal { .. } => (Code::Internal, None),
        };
        (code, error.code(), retry_after)
    }
}

fn denied_code(denied: &auth::Denied) -> Code {
    use auth::Denied;
    match denied {
        Denied::Unknown | Denied::Expired => Code::Unauthenticated,
        Denied::Inactive | Denied::Model { .. } => Code::PermissionDenied,
        Denied::Quota { .. } | Denied::Limit { .. } => Code::ResourceExhausted,
    }
}

impl From<auth::AdmitError> for Error {
    fn from(error: auth::AdmitError) -> Self {
        match error {
            auth::AdmitError::Denied(denied) => denied.into(),
            auth::AdmitError::Store(error) => error.into(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, name, retry_after) = error.answer();
        let mut status = if code == Code::Internal {
            tracing::error!(error.type = name, error = %Chain(&error), "call failed");
            Self::new(code, "internal error; the server's log has the cause under this request id")
        } else {
            // Not the message: it may quote the request.
            tracing::debug!(error.type = name, "call refused");
            Self::new(code, error.to_string())
        };
        let metadata = status.metadata_mut();
        metadata.insert(ERROR_CODE, MetadataValue::from_static(name));
        // A parameter's name can hold anything that a client sent.
        if let Error::Chat(chat::Error::Invalid(invalid)) = &error
            && let Some(param) = invalid.param.as_deref().and_then(|param| param.parse().ok())
        {
            metadata.insert(ERROR_PARAM, param);
        }
        if let Some(retry_after) = retry_after {
            metadata.insert(RETRY_AFTER, MetadataValue::from(retry_after.as_secs().max(1)));
        }
        status
    }
}
