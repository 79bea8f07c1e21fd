//! The way into a model group's engine.

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::RETRY_AFTER;
use super::request::{GenerateRequest, Generation, SubmitError};
use super::status::GroupStatus;

/// A request on its way into the engine.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: GenerateRequest,
    /// Of the client's request.
    pub(super) span: Span,
    pub(super) reply: oneshot::Sender<Result<Generation, SubmitError>>,
}

/// Cheap to clone; every holder may submit.
#[derive(Clone, Debug)]
pub struct Handle {
    submissions: mpsc::Sender<Submission>,
    status: watch::Receiver<GroupStatus>,
}

impl Handle {
    pub(super) fn new(
        submissions: mpsc::Sender<Submission>,
        status: watch::Receiver<GroupStatus>,
    ) -> Self {
        Self { submissions, status }
    }

    /// Hands a sequence to the engine; it becomes a part of the trace of the current span. Returns once it is queued or refused, not when it begins; dropping the
    /// [`Generation`] cancels it.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn submit(&self, request: GenerateRequest) -> Result<Generation, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || SubmitError::NotReady {
            reason: "the engine has stopped".to_owned(),
            retry_after: RETRY_AFTER,
        };
        let submission = Submission { request, span: Span::current(), reply };
        self.submissions.send(submission).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The group's status now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        self.status.borrow().clone()
    }

    /// A receiver that sees every later change of the status.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.status.clone()
    }
}
