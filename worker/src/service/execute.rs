//! The stream of steps: batches in, outputs out, in order, at most two under way.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use switchyard_moe::ids::StepId;
use switchyard_proto::worker::{RankBatch, StepOutput};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{Instrument as _, Span, debug};

use super::membership::{Life, Membership};
use super::{Inner, status, wire};
use crate::rank::{self, PendingStep};

/// Steps that the coordinator may have sent before the first of them is answered.
const STEPS_IN_FLIGHT_MAX: usize = 2;

/// One stream of steps. Its task outlives a client that goes away without a word, to clean up.
#[derive(Debug)]
struct Execution {
    inner: Arc<Inner>,
    membership: Arc<Membership>,
    outputs: mpsc::Sender<Result<StepOutput, Status>>,
    /// The last step taken.
    last: StepId,
    in_flight: VecDeque<(StepId, PendingStep)>,
}

/// Takes the current membership's stream of steps.
pub(super) fn begin(
    inner: Arc<Inner>,
    batches: Streaming<RankBatch>,
    span: Span,
) -> Result<BoxStream<'static, Result<StepOutput, Status>>, Status> {
    let Some(membership) = inner.lock().membership.clone() else {
        return Err(Status::failed_precondition("the worker is in no group; call FormGroup first"));
    };
    if !membership.claim() {
        return Err(Status::failed_precondition(format!(
            "the steps of epoch {} already have a stream",
            membership.epoch()
        )));
    }
    let (sender, outputs) = mpsc::channel(STEPS_IN_FLIGHT_MAX);
    let in_flight = VecDeque::with_capacity(STEPS_IN_FLIGHT_MAX);
    let execution = Execution { inner, membership, outputs: sender, last: StepId(0), in_flight };
    tokio::spawn(execution.run(batches).instrument(span));
    Ok(ReceiverStream::new(outputs).boxed())
}

// === impl Execution ===

impl Execution {
    /// Runs until either side ends the stream, or a step fails; then the rank leaves the group.
    async fn run(mut self, batches: Streaming<RankBatch>) {
        let end = self.pump(batches).await;
        let epoch = self.membership.epoch();
        let reason = match end {
            Ok(()) => "its stream of steps has ended".to_owned(),
            Err(ref status) => status.message().to_owned(),
        };
        debug!(%epoch, reason, "the stream of steps ends");
        self.membership.end(Life::Left(reason));
        {
            let mut state = self.inner.lock();
            let is_current =
                |membership: &mut Arc<Membership>| Arc::ptr_eq(membership, &self.membership);
            drop(state.membership.take_if(is_current));
        }
        let tell = async {
            if let Err(status) = end {
                // If nobody listens, nobody needs to know.
                let _ = self.outputs.send(Err(status)).await;
            }
        };
        // A thread that is gone has left as well.
        let _ = tokio::join!(tell, self.inner.rank.leave(epoch));
    }

    async fn pump(&mut self, mut batches: Streaming<RankBatch>) -> Result<(), Status> {
        let membership = Arc::clone(&self.membership);
        let outputs = self.outputs.clone();
        let (ended, left) = (membership.ended(), membership.left());
        tokio::pin!(ended, left);
        let (mut takes_more, mut result) = (true, Ok(()));
        while takes_more || !self.in_flight.is_empty() {
            let has_room = self.in_flight.len() < STEPS_IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = outputs.closed() => return Err(Status::cancelled("the coordinator went away")),
                Some(answer) = first(&mut self.in_flight) => self.answer(answer).await?,
                reason = &mut left => return Err(left_status(&reason)),
                life = &mut ended, if takes_more => match life {
                    Life::Left(reason) => return Err(left_status(&reason)),
                    // Batches that come now are not taken, so the stream must not end as if they had been.
                    Life::Draining(reason) => {
                        (takes_more, result) = (false, Err(left_status(&reason)));
                    }
                    Life::Active => {}
                },
                batch = batches.next(), if takes_more && has_room => match batch {
                    Some(batch) => self.take(batch?).await?,
                    None => takes_more = false,
                },
            }
        }
        result
    }

    /// Checks a batch and queues it for the rank.
    async fn take(&mut self, batch: RankBatch) -> Result<(), Status> {
        let epoch = self.membership.epoch();
        let step = wire::batch(batch).map_err(|error| status::field(&error))?;
        if step.epoch != epoch {
            return Err(status::stale_epoch(step.epoch, epoch));
        }
        let number = step.step;
        if number.0 != self.last.0 + 1 {
            return Err(Status::invalid_argument(format!(
                "step: {number} does not follow step {} of epoch {epoch}",
                self.last
            )));
        }
        self.last = number;
        let pending = self.inner.rank.step(step).await;
        self.in_flight.push_back((number, pending.map_err(|error| status::rank(&error))?));
        Ok(())
    }

    /// Passes the oldest step's result on.
    async fn answer(&mut self, answer: Answer) -> Result<(), Status> {
        let (step, result) = answer;
        let result = result.map_err(|error| status::rank(&error))?;
        let output = wire::output(self.membership.epoch(), step, result);
        self.outputs
            .send(Ok(output))
            .await
            .map_err(|_| Status::cancelled("the coordinator went away"))
    }
}

fn left_status(reason: &str) -> Status {
    Status::aborted(format!("the worker has left the group: {reason}"))
}

type Answer = (StepId, Result<crate::step::StepResult, rank::Error>);

/// Waits for the oldest step in flight and takes it off; `None` if there is none. Cancel safe.
async fn first(in_flight: &mut VecDeque<(StepId, PendingStep)>) -> Option<Answer> {
    let (step, pending) = in_flight.front_mut()?;
    let result = pending.await.unwrap_or(Err(rank::Error::Stopped));
    let step = *step;
    in_flight.pop_front();
    Some((step, result))
}
