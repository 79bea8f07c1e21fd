//! The steps of one formed group: batches out to the ranks, outputs back.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll, once};
use switchyard_moe::ids::{EpRank, GroupEpoch, SequenceId, StepId};
use switchyard_proto::worker::{RankBatch, StepOutput, TraceContext};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::activity::RankStep;
use super::group::{Group, GroupFailure, RankError};
use super::streams::Streams;
use super::wire::{self, Owed};
use crate::scheduler::{Batch, RankBatch as RankPart, Sample};

/// After the first failure: how long to listen for the other ranks' view of it. The rank that failed first is seldom
/// the one that says why.
const SETTLE: Duration = Duration::from_millis(100);

/// A group that takes steps.
pub(super) struct Serving {
    epoch: GroupEpoch,
    batches: Vec<mpsc::Sender<RankBatch>>,
    outputs: SelectAll<BoxStream<'static, (EpRank, Result<StepOutput, RankError>)>>,
    /// Oldest first.
    in_flight: VecDeque<PendingStep>,
    step_deadline: Duration,
    /// When the oldest step in flight could begin.
    oldest_since: Instant,
    has_committed: bool,
}

/// A step sent and not over on all ranks.
#[derive(Debug)]
struct PendingStep {
    step: StepId,
    /// `[world_size]`.
    ranks: Vec<PendingRank>,
}

/// One rank's part of a step.
#[derive(Debug)]
enum PendingRank {
    Owes(Vec<Owed>),
    Done(Vec<Sample>, RankStep),
}

/// A step that is over on all ranks.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) step: StepId,
    pub(super) samples: Vec<Sample>,
    /// Since the step could begin.
    pub(super) duration: Duration,
    /// Each rank's own account of it, `[world_size]`.
    pub(super) ranks: Vec<RankStep>,
}

// === impl Committed ===

impl Committed {
    /// Longest time that a rank says it computed.
    pub(super) fn rank_time(&self) -> Duration {
        self.ranks.iter().map(|rank| rank.time).max().unwrap_or_default()
    }
}

// === impl Serving ===

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving")
            .field("epoch", &self.epoch)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Serving {
    pub(super) fn new(group: Group, step_deadline: Duration) -> Self {
        let mut batches = Vec::new();
        let mut outputs = SelectAll::new();
        for (rank, stream) in (0..).map(EpRank).zip(group.ranks) {
            batches.push(stream.batches);
            let ended = RankError::Lost("the worker closed its step stream".to_owned());
            let with_end = stream.outputs.chain(once(async { Err(ended) }));
            outputs.push(with_end.map(move |output| (rank, output)).boxed());
        }
        Self {
            epoch: group.epoch,
            batches,
            outputs,
            in_flight: VecDeque::new(),
            step_deadline,
            oldest_since: Instant::now(),
            has_committed: false,
        }
    }

    pub(super) fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    /// Whether any step of this group is over.
    pub(super) fn has_committed(&self) -> bool {
        self.has_committed
    }

    /// Sends a step to all ranks. Never waits: their queues have room for all steps in flight.
    pub(super) fn send(
        &mut self,
        batch: &Batch,
        streams: &Streams,
        traces: &[TraceContext],
    ) -> Result<(), GroupFailure> {
        if self.in_flight.is_empty() {
            self.oldest_since = Instant::now();
        }
        let ranks = (0..).map(EpRank).zip(&batch.ranks);
        let ranks = ranks.map(|(rank, part)| PendingRank::Owes(self.owed(rank, part))).collect();
        self.in_flight.push_back(PendingStep { step: batch.step, ranks });
        for (rank, (sender, part)) in (0..).map(EpRank).zip(self.batches.iter().zip(&batch.ranks)) {
            let mut message = wire::batch(self.epoch, batch.step, part, streams);
            message.traces = traces.to_vec();
            if sender.try_send(message).is_err() {
                let error = RankError::Lost("its step stream takes no more batches".to_owned());
                return Err(self.failure(&[(rank, error)]));
            }
        }
        Ok(())
    }

    /// Waits until the oldest step in flight is over on all ranks, or one of them fails. Cancel safe: what has arrived is
    /// kept in `self`.
    pub(super) async fn next(&mut self) -> Result<Committed, GroupFailure> {
        loop {
            if let Some(committed) = self.commit() {
                return Ok(committed);
            }
            let deadline = self.oldest_since + self.step_deadline;
            let in_flight = !self.in_flight.is_empty();
            let (rank, output) = tokio::select! {
                biased;
                Some(output) = self.outputs.next() => output,
                () = tokio::time::sleep_until(deadline), if in_flight => {
                    return Err(self.overdue());
                }
                else => std::future::pending().await,
            };
            let stored = output.and_then(|output| self.store(rank, output));
            if let Err(error) = stored {
                return Err(self.collapse(rank, error).await);
            }
        }
    }

    /// Keeps a rank's output for its step.
    fn store(&mut self, rank: EpRank, output: StepOutput) -> Result<(), RankError> {
        let (epoch, step) = (output.epoch, output.step);
        let wrong = |detail: String| {
            RankError::Failed(format!("rank {rank} {detail} (step {step}, epoch {epoch})"))
        };
        if GroupEpoch(epoch) != self.epoch {
            return Err(wrong(format!("answered for another epoch than {}", self.epoch)));
        }
        let owing = self.in_flight.iter_mut().find_map(|pending| {
            let part = pending.ranks.get_mut(rank.0 as usize)?;
            matches!(part, PendingRank::Owes(_)).then_some((pending.step, part))
        });
        match owing {
            Some((expected, part)) if expected == StepId(step) => {
                if let PendingRank::Owes(owed) = part {
                    let step = wire::rank_step(output.timings.as_ref());
                    let samples = wire::samples(owed, output).map_err(wrong)?;
                    let deferred: Vec<_> = samples.iter().filter_map(Sample::deferred).collect();
                    *part = PendingRank::Done(samples, step);
                    self.defer(rank, &deferred);
                }
                Ok(())
            }
            _ => Err(wrong("answered for a step that it was not asked for".to_owned())),
        }
    }

    /// The samples that a rank owes for its part of a new step. The scheduler has planned it without what this rank has put
    /// off in steps that are not over on all others.
    fn owed(&self, rank: EpRank, part: &RankPart) -> Vec<Owed> {
        let mut owed = wire::owed(part);
        for pending in &self.in_flight {
            if let Some(PendingRank::Done(samples, _)) = pending.ranks.get(rank.0 as usize) {
                let deferred = samples.iter().filter_map(Sample::deferred);
                deferred.for_each(|id| wire::defer(&mut owed, id));
            }
        }
        owed
    }

    /// Samples of a rank were put off: what it owes for later steps comes a position earlier.
    fn defer(&mut self, rank: EpRank, deferred: &[SequenceId]) {
        for pending in &mut self.in_flight {
            if let Some(PendingRank::Owes(owed)) = pending.ranks.get_mut(rank.0 as usize) {
                deferred.iter().for_each(|&id| wire::defer(owed, id));
            }
        }
    }

    /// Takes the oldest step off, if it is over on all ranks.
    fn commit(&mut self) -> Option<Committed> {
        let done = |rank: &PendingRank| matches!(rank, PendingRank::Done(..));
        let pending = self.in_flight.pop_front_if(|pending| pending.ranks.iter().all(done))?;
        let now = Instant::now();
        let duration = now - self.oldest_since;
        self.oldest_since = now;
        self.has_committed = true;
        let mut committed = Committed {
            step: pending.step,
            samples: Vec::new(),
            duration,
            ranks: Vec::with_capacity(pending.ranks.len()),
        };
        for rank in pending.ranks {
            if let PendingRank::Done(samples, step) = rank {
                committed.samples.extend(samples);
                committed.ranks.push(step);
            }
        }
        Some(committed)
    }

    /// Listens for the other ranks' view of a failure, then sums it up.
    async fn collapse(&mut self, rank: EpRank, error: RankError) -> GroupFailure {
        let mut errors = vec![(rank, error)];
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        while errors.len() < self.batches.len() {
            tokio::select! {
                biased;
                Some((rank, output)) = self.outputs.next() => {
                    if let Err(error) = output
                        && errors.iter().all(|(known, _)| *known != rank)
                    {
                        errors.push((rank, error));
                    }
                }
                () = &mut settled => break,
            }
        }
        self.failure(&errors)
    }

    fn failure(&self, errors: &[(EpRank, RankError)]) -> GroupFailure {
        let lost = errors.iter().filter(|(_, error)| matches!(error, RankError::Lost(_)));
        let mut said: Vec<String> = Vec::new();
        for (_, error) in errors {
            if let RankError::Failed(words) = error
                && !said.contains(words)
            {
                said.push(words.clone());
            }
        }
        for (rank, error) in lost.clone() {
            said.push(format!("rank {rank}: {error}"));
        }
        GroupFailure {
            epoch: self.epoch,
            reason: said.join("; "),
            suspects: lost.map(|(rank, _)| *rank).collect(),
        }
    }

    fn overdue(&self) -> GroupFailure {
        let oldest = self.in_flight.front();
        let suspects: Vec<EpRank> = oldest
            .into_iter()
            .flat_map(|pending| (0..).map(EpRank).zip(&pending.ranks))
            .filter(|(_, part)| matches!(part, PendingRank::Owes(_)))
            .map(|(rank, _)| rank)
            .collect();
        let ranks: Vec<String> = suspects.iter().map(|rank| format!("rank {rank}")).collect();
        let step = oldest.map(|pending| pending.step).unwrap_or_default();
        GroupFailure {
            epoch: self.epoch,
            reason: format!(
                "{} gave no output for step {step} within {} ms",
                ranks.join(", "),
                self.step_deadline.as_millis()
            ),
            suspects,
        }
    }
}
