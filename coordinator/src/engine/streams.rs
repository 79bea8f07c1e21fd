//! The owners of sequences, and what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry::KeyValue;
use switchyard_moe::ids::SequenceId;
use switchyard_proto::worker::TraceContext;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::error;

use super::RETRY_AFTER;
use super::handle::Submission;
use super::request::{
    Constraint, FinishReason, GenerateError, GenerateEvent, GeneratedToken, Generation,
    SamplingParams, SubmitError,
};
use super::trace::{TRACES_PER_STEP_MAX, Trace};
use crate::scheduler::{self, Batch, NewSequence};

/// All sequences whose end has not been told yet.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: BTreeMap<SequenceId, Stream>,
    /// Of those whose requests are sampled; mostly empty.
    traces: BTreeMap<SequenceId, Trace>,
    last_id: SequenceId,
    hangup: Arc<Notify>,
}

/// One sequence's owner.
#[derive(Debug)]
struct Stream {
    /// Has room for the whole answer and its end.
    events: mpsc::Sender<GenerateEvent>,
    start: Start,
    /// The caller that still waits to hear whether the sequence is accepted.
    reply: Option<Reply>,
}

/// What a rank must know to sample for a sequence.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) prompt_len: u32,
    pub(super) sampling: SamplingParams,
    pub(super) constraint: Option<Arc<Constraint>>,
}

/// An answer not given yet.
#[derive(Debug)]
struct Reply {
    sender: oneshot::Sender<Result<Generation, SubmitError>>,
    generation: Generation,
}

// === impl Streams ===

impl Streams {
    /// Gives the request an id and a stream. The caller hears of it through [`accept`](Self::accept) or
    /// [`refuse`](Self::refuse).
    pub(super) fn open(&mut self, submission: Submission) -> NewSequence {
        let Submission { request, span, reply } = submission;
        self.last_id = SequenceId(self.last_id.0 + 1);
        let max_tokens = request.max_tokens as usize;
        let (events, receiver) = mpsc::channel(max_tokens + 1);
        let generation = Generation::with_hangup(receiver, Arc::clone(&self.hangup));
        let reply = Some(Reply { sender: reply, generation });
        let start = Start {
            prompt_len: request.prompt.len() as u32,
            sampling: request.sampling,
            constraint: request.constraint,
        };
        self.open.insert(self.last_id, Stream { events, start, reply });
        self.traces.extend(Trace::begin(&span).map(|trace| (self.last_id, trace)));
        NewSequence {
            id: self.last_id,
            priority: request.priority,
            prompt: request.prompt,
            max_tokens,
            stop_token_ids: request.stop_token_ids,
        }
    }

    /// Tells the caller that the sequence is accepted.
    pub(super) fn accept(&mut self, id: SequenceId) {
        if let Some(reply) = self.open.get_mut(&id).and_then(|stream| stream.reply.take()) {
            // A caller that has gone drops the generation, which cancels the sequence.
            let _ = reply.sender.send(Ok(reply.generation));
        }
    }

    /// Tells the caller that the sequence is not accepted.
    pub(super) fn refuse(&mut self, id: SequenceId, error: scheduler::Error) {
        let error = match error {
            scheduler::Error::QueueFull { waiting } => {
                SubmitError::QueueFull { waiting, retry_after: RETRY_AFTER }
            }
            scheduler::Error::TooLong { needed, available } => {
                SubmitError::TooLong { needed, available }
            }
        };
        self.traces.remove(&id);
        if let Some(reply) = self.open.remove(&id).and_then(|stream| stream.reply) {
            let _ = reply.sender.send(Err(error));
        }
    }

    /// The sequence runs for the first time.
    pub(super) fn started(&mut self, id: SequenceId) {
        if let (Some(trace), Some(stream)) = (self.traces.get_mut(&id), self.open.get(&id)) {
            trace.started(stream.start.prompt_len);
        }
    }

    /// The sequence waits again, and will be computed again.
    pub(super) fn preempted(&self, id: SequenceId) {
        if let Some(trace) = self.traces.get(&id) {
            trace.note("preempted", Vec::new());
        }
    }

    /// All sequences wait for the next group, and will be computed again.
    pub(super) fn group_lost(&self, reason: &str) {
        for trace in self.traces.values() {
            trace.note("group lost", vec![KeyValue::new("switchyard.reason", reason.to_owned())]);
        }
    }

    /// The spans that workers tell a step in: those of the first few of its sequences that have one.
    pub(super) fn traces_of(&mut self, batch: &Batch) -> Vec<TraceContext> {
        if self.traces.is_empty() {
            return Vec::new();
        }
        let chunks = batch.ranks.iter().flat_map(|rank| &rank.chunks);
        let told =
            chunks.filter_map(|chunk| self.traces.get_mut(&chunk.sequence)?.step(&chunk.tokens));
        told.take(TRACES_PER_STEP_MAX).collect()
    }

    /// Passes one token on.
    pub(super) fn token(&mut self, id: SequenceId, mut token: GeneratedToken) {
        if self.start(id).is_some_and(|start| !start.sampling.logprobs) {
            token.logprob = None;
        }
        if let Some(trace) = self.traces.get_mut(&id) {
            trace.token();
        }
        self.send(id, GenerateEvent::Token(token));
    }

    /// Tells the owner that the answer is complete.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.send(id, GenerateEvent::Finished(reason));
        self.traces.remove(&id);
        self.open.remove(&id);
    }

    /// Tells the owner that the answer cannot go on.
    pub(super) fn fail(&mut self, id: SequenceId, error: GenerateError) {
        if let Some(trace) = self.traces.remove(&id) {
            trace.failed("the answer cannot follow its format any further");
        }
        self.send(id, GenerateEvent::Failed(error));
        self.open.remove(&id);
    }

    /// Tells every owner that its answer cannot be completed; returns their sequences.
    pub(super) fn fail_all(&mut self, error: &GenerateError) -> Vec<SequenceId> {
        let ids: Vec<SequenceId> = self.open.keys().copied().collect();
        for &id in &ids {
            self.accept(id);
            self.send(id, GenerateEvent::Failed(error.clone()));
        }
        self.open.clear();
        for trace in std::mem::take(&mut self.traces).into_values() {
            trace.failed(error.to_string());
        }
        ids
    }

    /// Waits until a reader has gone. Cancel safe.
    pub(super) async fn hangup(&self) {
        self.hangup.notified().await;
    }

    /// Forgets the streams whose readers have gone; returns their sequences.
    pub(super) fn take_gone(&mut self) -> impl Iterator<Item = SequenceId> {
        let Self { open, traces, .. } = self;
        open.extract_if(.., |_, stream| stream.events.is_closed()).map(|(id, _)| {
            traces.remove(&id);
            id
        })
    }

    /// What the sequence's rank must know.
    pub(super) fn start(&self, id: SequenceId) -> Option<&Start> {
        self.open.get(&id).map(|stream| &stream.start)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn send(&self, id: SequenceId, event: GenerateEvent) {
        let Some(stream) = self.open.get(&id) else { return };
        match stream.events.try_send(event) {
            // Closed: the hangup is already on its way to the engine.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                error!(sequence = %id, "a sequence produced more than max_tokens events");
            }
        }
    }
}
