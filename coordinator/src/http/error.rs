//! Errors of the HTTP API: each one's status in one place, and the form of it that a protocol wants.

use std::time::Duration;

use axum::Json;
use axum::extract::multipart::MultipartError;
use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

mod stored;

use super::{admin, standby};
use crate::chat::responses::store;
use crate::chat::usage::Chain;
use crate::engine::request::{GenerateError, SubmitError};
use crate::{auth, batches, chat, files};
use stored::{batch_answer, file_answer};

/// When to retry where the engine does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Tells OpenAI's library whether to try again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key was sent.
    #[error("no API key was sent; send it as `Authorization: Bearer KEY`")]
    MissingKey,
    /// Another coordinator leads.
    #[error("this coordinator stands by, {}; send the request again", standby::leads(.leader.as_deref()))]
    StandsBy {
        /// Which one, as far as is known.
        leader: Option<String>,
    },
    /// The holder of the key may not do this, or not now.
    #[error(transparent)]
    Denied(#[from] auth::Denied),
    /// The keys cannot be looked up.
    #[error(transparent)]
    Keys(#[from] auth::Error),
    /// The admin API was asked without its key.
    #[error("the admin API takes its own key only; send it as `Authorization: Bearer KEY`")]
    AdminKey,
    /// The admin API was sent something that it cannot use.
    #[error(transparent)]
    Admin(#[from] admin::Invalid),
    /// Nothing is at this path.
    #[error("there is nothing at {path}")]
    NoRoute {
        /// As asked for.
        path: String,
    },
    /// The path does not take this method.
    #[error("{path} does not take {method}")]
    MethodNotAllowed {
        /// As asked for.
        method: String,
        /// As asked for.
        path: String,
    },
    /// The body is of another kind.
    #[error("the content type is {content_type:?}; send {wanted}")]
    ContentType {
        /// As sent.
        content_type: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The body is compressed.
    #[error("the content encoding is {encoding:?}; send the body as it is, without one")]
    ContentEncoding {
        /// As sent.
        encoding: String,
    },
    /// The body is no form, or breaks off.
    #[error("the body is no multipart form: {}", .0.body_text())]
    Multipart(#[source] MultipartError),
    /// The body is too big.
    #[error("the body is larger than {max} bytes, which is this server's limit")]
    BodyTooLarge {
        /// The limit.
        max: usize,
        /// Whether the rest of the body is still on its way.
        unread: bool,
    },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} s", .after.as_secs())]
    BodyTimeout {
        /// The limit.
        after: Duration,
    },
    /// The connection broke while the body arrived.
    #[error("the body ended early")]
    BodyBroken(#[source] axum::Error),
    /// The chat cannot be served.
    #[error(transparent)]
    Chat(#[from] chat::Error),
    /// A kept response cannot be used.
    #[error(transparent)]
    Kept(#[from] store::Error),
    /// A file cannot be had, or kept.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A batch cannot be had, or made.
    #[error(transparent)]
    Batch(#[from] batches::Error),
    /// A handler panicked; the log has the message.
    #[error("internal error")]
    Panicked,
}

/// What a client is told of an error. Its [`Dialect`] decides in which words.
#[derive(Clone, Debug)]
pub struct Report {
    /// Status of the response.
    pub status: StatusCode,
    /// Kind of error, as OpenAI's `type`.
    pub kind: &'static str,
    /// What went wrong, as OpenAI's `code`.
    pub code: &'static str,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For the reader.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Whether the server, not the client, has too much to do.
    pub is_overload: bool,
}

/// The form in which a protocol states errors.
pub trait Dialect: 'static {
    /// The body of an error response.
    fn body(report: &Report) -> Value;

    /// The event that ends a stream with an error: its name, if the protocol names events, and its data.
    fn event(report: &Report) -> (Option<&'static str>, Value);
}

/// The body of an error response, and of an error event in a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ErrorObject<'a> {
    /// For people.
    message: &'a str,
    /// The kind of fault, such as `invalid_request_error`.
    r#type: &'static str,
    /// The field, when there is one.
    param: Option<&'a str>,
    /// For programs.
    code: &'static str,
}

/// `{"error": {"message", "type", "param", "code"}}`, in responses and in events.
#[derive(Clone, Copy, Debug)]
pub struct OpenAi;

/// How an error is answered.
struct Answer {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    retry_after: Option<Duration>,
    is_overload: bool,
}

// === impl OpenAi ===

impl Dialect for OpenAi {
    fn body(report: &Report) -> Value {
        let Report { kind, code, param, message, .. } = report;
        let error = ErrorObject { message, r#type: kind, param: param.as_deref(), code };
        json!(ErrorBody { error })
    }

    fn event(report: &Report) -> (Option<&'static str>, Value) {
        (None, Self::body(report))
    }
}

// === impl Answer ===

impl Answer {
    fn new(status: StatusCode, kind: &'static str, code: &'static str) -> Self {
        Self { status, kind, code, param: None, retry_after: None, is_overload: false }
    }

    fn invalid(status: StatusCode, code: &'static str) -> Self {
        Self::new(status, "invalid_request_error", code)
    }

    fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error")
    }

    fn param(self, param: impl Into<Option<String>>) -> Self {
        Self { param: param.into(), ..self }
    }

    fn retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    fn overload(self) -> Self {
        Self { is_overload: true, ..self }
    }
}

// === impl Error ===

impl Error {
    /// The one place that decides how an error is answered.
    fn answer(&self) -> Answer {
        match self {
            Self::MissingKey | Self::AdminKey => {
                Answer::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key")
            }
            Self::StandsBy { .. } => {
                Answer::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "standby")
                    .retry_after(RETRY_AFTER_DEFAULT)
                    .overload()
            }
            Self::Denied(denied) => denied_answer(denied),
            Self::Admin(invalid) => Answer::invalid(StatusCode::BAD_REQUEST, "invalid_value")
                .param(invalid.param.clone()),
            Self::Keys(auth::Error::NoSuchKey(_)) => {
                Answer::invalid(StatusCode::NOT_FOUND, "key_not_found")
            }
            Self::NoRoute { .. } => Answer::invalid(StatusCode::NOT_FOUND, "unknown_url"),
            Self::MethodNotAllowed { .. } => {
                Answer::invalid(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
            }
            Self::ContentType { .. } => {
                Answer::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::ContentEncoding { .. } => {
                Answer::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding")
            }
            Self::BodyTooLarge { .. } => {
                Answer::invalid(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large")
            }
            Self::BodyTimeout { .. } => {
                Answer::invalid(StatusCode::REQUEST_TIMEOUT, "request_timeout")
            }
            Self::BodyBroken(_) => Answer::invalid(StatusCode::BAD_REQUEST, "incomplete_body"),
            Self::Chat(error) => chat_answer(error),
            Self::Kept(error) => kept_answer(error),
            Self::File(error) => file_answer(error),
            Self::Batch(error) => batch_answer(error),
            Self::Multipart(_) => Answer::invalid(StatusCode::BAD_REQUEST, "invalid_multipart"),
            Self::Keys(_) | Self::Panicked => Answer::internal(),
        }
    }

    /// What the client is told.
    #[must_use]
    pub fn report(&self) -> Report {
        let Answer { status, kind, code, param, retry_after, is_overload } = self.answer();
        // What went wrong inside is for the log, not for the client.
        let message = if status == StatusCode::INTERNAL_SERVER_ERROR {
            "internal error; the server's log has the cause under this request id".to_owned()
        } else {
            self.to_string()
        };
        Report { status, kind, code, param, message, retry_after, is_overload }
    }

    /// The error as a response of another dialect than [`OpenAi`], whose form [`IntoResponse`] gives it.
    #[must_use]
    pub fn respond<D: Dialect>(&self) -> Response {
        let report = self.report();
        let Report { status, code, param, .. } = &report;
        if *status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error.type = code, error = %Chain(self), "request failed");
        } else {
            // Not the message: it may quote the request.
            tracing::debug!(error.type = code, error.param = param, "request refused");
        }
        let mut response = (*status, Json(D::body(&report))).into_response();
        let headers = response.headers_mut();
        if let Some(retry_after) = report.retry_after {
            let seconds = retry_after.as_secs().max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Denied(auth::Denied::Quota { .. })) {
            // Clients of OpenAI's library would try again at once and in vain.
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if *status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(
            self,
            Self::BodyTooLarge { unread: true, .. }
                | Self::BodyTimeout { .. }
                | Self::File(files::Error::TooLarge { .. })
        ) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // So that a layer around routes of another dialect can state errors of the layers below it, too.
        response.extensions_mut().insert(report);
        response
    }
}

fn denied_answer(denied: &auth::Denied) -> Answer {
    use auth::Denied;
    let code = denied.code();
    let answer = match denied {
        Denied::Unknown | Denied::Expired => {
            Answer::new(StatusCode::UNAUTHORIZED, "authentication_error", code)
        }
        Denied::Inactive => Answer::new(StatusCode::FORBIDDEN, "permission_error", code),
        Denied::Model { .. } => {
            Answer::new(StatusCode::FORBIDDEN, "permission_error", code).param("model".to_owned())
        }
        Denied::Quota { .. } => Answer::new(StatusCode::TOO_MANY_REQUESTS, code, code),
        Denied::Limit { .. } => {
            Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code)
        }
    };
    Answer { retry_after: denied.retry_after(), ..answer }
}

fn chat_answer(error: &chat::Error) -> Answer {
    use chat::Error as Chat;
    let code = error.code();
    let context_length =
        |param: &str| Answer::invalid(StatusCode::BAD_REQUEST, code).param(param.to_owned());
    let overloaded =
        || Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code).overload();
    let unavailable =
        || Answer::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code).overload();
    match error {
        Chat::Invalid(invalid) => {
            Answer::invalid(StatusCode::BAD_REQUEST, code).param(invalid.param.clone())
        }
        Chat::UnknownModel { .. } => {
            Answer::invalid(StatusCode::NOT_FOUND, code).param("model".to_owned())
        }
        Chat::ContextLength { param, .. } => context_length(param),
        Chat::Submit(SubmitError::TooLong { .. }) => context_length("messages"),
        Chat::Busy { .. } => overloaded().retry_after(RETRY_AFTER_DEFAULT),
        Chat::Submit(SubmitError::QueueFull { retry_after, .. }) => {
            overloaded().retry_after(*retry_after)
        }
        Chat::Submit(SubmitError::NotReady { retry_after, .. }) => {
            unavailable().retry_after(*retry_after)
        }
        // The field depends on the dialect, and may be a tool's schema; the message says what it was.
        Chat::Generate(GenerateError::Constraint(_)) => {
            Answer::invalid(StatusCode::BAD_REQUEST, code)
        }
        Chat::Generate(GenerateError::GroupLost(_) | GenerateError::ShuttingDown) => {
            unavailable().retry_after(RETRY_AFTER_DEFAULT)
        }
        Chat::Denied(denied) => denied_answer(denied),
        Chat::Unrecorded(_) => unavailable().retry_after(RETRY_AFTER_DEFAULT),
        Chat::Internal { .. } => Answer::internal(),
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

fn kept_answer(error: &store::Error) -> Answer {
    use store::Error as Kept;
    let previous = |code| {
        Answer::invalid(StatusCode::BAD_REQUEST, code).param("previous_response_id".to_owned())
    };
    match error {
        Kept::NotFound { .. } => Answer::invalid(StatusCode::NOT_FOUND, "response_not_found"),
        Kept::PreviousNotFound { .. } => previous("previous_response_not_found"),
        Kept::PreviousUnfinished { .. } => previous("previous_response_not_finished"),
        Kept::NotBackground { .. } => {
            Answer::invalid(StatusCode::BAD_REQUEST, "response_not_cancellable")
        }
        Kept::Full { .. } => {
            Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded")
                .retry_after(RETRY_AFTER_DEFAULT)
                .overload()
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.respond::<OpenAi>()
    }
}
