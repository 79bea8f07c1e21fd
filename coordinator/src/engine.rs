//! The loop around the scheduler: collect events, schedule, send, commit.
//!
//! One owner task per model group, [`Engine::run`], holds the scheduler and every open stream of tokens. Everybody else
//! holds a [`Handle`].
//! - [`request`]: what the front end asks, and what it gets back.
//! - [`status`]: what the group tells about itself.
//! - [`activity`]: what it did in the last seconds.
//! - [`handle`]: the way in.
//! - [`group`]: a formed group, as the cluster's supervisor hands it over.
//! - [`observe`]: its status as metrics.
//! - `streams`: the owners of sequences, and what they are told.
//! - `trace`: sequences in the traces of their requests.
//! - `serving`: batches out to the ranks, outputs back.
//! - `wire`: a plan as messages, and outputs checked against their plan.
//!
//! The engine never dials a worker and never decides who is a member.
//!
//! # Slow readers
//! A sequence's events go into a channel that has room for its whole answer, so sending never waits and a slow reader
//! holds up nobody. What one reader can make us keep is bounded by its own `max_tokens`, and its KV blocks
//! are free as soon as the answer is complete, however slowly it is read.

use std::time::Duration;

use switchyard_moe::ids::ModelId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug_span, info, warn};

use crate::scheduler::{Event, Limits, Scheduler, Stats, Update};

pub mod request;
pub mod status;
pub mod activity;
pub mod handle;
pub mod group;
mod streams;
mod trace;
mod serving;
mod wire;
mod metrics;
pub mod observe;

#[cfg(test)]
mod tests;

pub use handle::Handle;

use group::{Command, Group, GroupFailure, Remote};
use handle::Submission;
use request::{GenerateError, SubmitError};
use serving::{Committed, Serving};
use status::{GroupStatus, Phase, RankBlocks};
use streams::Streams;

/// When a refused client should try again.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Submissions taken in before the next step is planned.
const SUBMISSIONS_MAX: usize = 64;

/// Commands and failures in flight between engine and supervisor.
const COMMANDS_MAX: usize = 8;

/// Groups in a row that were lost before they committed a step of the sequences they ran. After so many, these sequences
/// fail: one of them may be the cause, and would take down every group to come.
const FRUITLESS_GROUPS_MAX: usize = 5;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model, for messages and metrics.
    pub model: ModelId,
    /// What may never be exceeded, until there is a group that says.
    pub limits: Limits,
    /// Longest time of one step.
    pub step_deadline: Duration,
    /// How long running sequences get to finish at shutdown.
    pub drain_timeout: Duration,
}

/// The owner of one model group's sequences.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    scheduler: Scheduler,
    streams: Streams,
    serving: Option<Serving>,
    submissions: mpsc::Receiver<Submission>,
    commands: mpsc::Receiver<Command>,
    failures: mpsc::Sender<GroupFailure>,
    status: watch::Sender<GroupStatus>,
    metrics: metrics::Metrics,
    /// Groups lost in a row without a commit.
    fruitless_groups: usize,
    /// Set once shutdown has begun: when it is over, finished or not.
    drain_until: Option<Instant>,
}

/// What wakes the engine.
#[derive(Debug)]
enum Input {
    Submitted(Submission),
    Command(Command),
    Step(Result<Committed, GroupFailure>),
    /// A reader has gone.
    Hangup,
    Shutdown,
    DrainOver,
}

// === impl Engine ===

impl Engine {
    /// An engine without a group, the way in for clients, and that for the supervisor.
    #[must_use]
    pub fn new(options: Options) -> (Self, Handle, Remote) {
        let (submit, submissions) = mpsc::channel(SUBMISSIONS_MAX);
        let (command, commands) = mpsc::channel(COMMANDS_MAX);
        let (failures, failed) = mpsc::channel(COMMANDS_MAX);
        let (status, watch) = watch::channel(GroupStatus::new(options.limits.max_model_len));
        let remote = Remote::new(command, failed, status.clone());
        let engine = Self {
            scheduler: Scheduler::new(options.limits),
            streams: Streams::default(),
            serving: None,
            submissions,
            commands,
            failures,
            status,
            metrics: metrics::Metrics::new(&options.model),
            fruitless_groups: 0,
            drain_until: None,
            options,
        };
        (engine, Handle::new(submit, watch), remote)
    }

    /// Runs until `shutdown` is cancelled and the sequences have finished, or the drain timeout is over; `cut` ends it
    /// at once, and its sequences with an error. Sleeps whenever there is nothing to do.
    pub async fn run(mut self, shutdown: CancellationToken, cut: CancellationToken) {
        let epoch = Instant::now();
        loop {
            let input = self.next_input(&shutdown, &cut).await;
            let mut events = Vec::new();
            self.take_in(input, &mut events);
            while let Ok(submission) = self.submissions.try_recv() {
                self.take_in(Input::Submitted(submission), &mut events);
            }
            let _span = debug_span!("engine.step", model = %self.options.model).entered();
            self.schedule(epoch.elapsed(), events);
            self.publish();
            if self.drain_until.is_some() && self.streams.is_empty() {
                break;
            }
        }
        info!(model = %self.options.model, "engine stopped");
    }

    async fn next_input(&mut self, shutdown: &CancellationToken, cut: &CancellationToken) -> Input {
        let drain_until = self.drain_until;
        let step = async {
            match &mut self.serving {
                Some(serving) => serving.next().await,
                None => std::future::pending().await,
            }
        };
        let drain = async {
            match drain_until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // In this order, so that a simulation with one seed has one run.
            biased;
            () = cut.cancelled() => Input::DrainOver,
            () = shutdown.cancelled(), if drain_until.is_none() => Input::Shutdown,
            () = drain => Input::DrainOver,
            Some(command) = self.commands.recv() => Input::Command(command),
            () = self.streams.hangup() => Input::Hangup,
            committed = step => Input::Step(committed),
            Some(submission) = self.submissions.recv() => Input::Submitted(submission),
        }
    }

    fn take_in(&mut self, input: Input, events: &mut Vec<Event>) {
        match input {
            Input::Submitted(submission) => self.submit(submission, events),
            Input::Command(command) => self.obey(command, events),
            Input::Step(Ok(committed)) => {
                self.fruitless_groups = 0;
                self.metrics.committed(&committed);
                self.status.send_modify(|status| {
                    let now = Instant::now();
                    status.activity.committed(now, committed.duration, &committed.ranks);
                });
                events.push(Event::StepCommitted {
                    step: committed.step,
                    samples: committed.samples,
                });
            }
            Input::Step(Err(failure)) => self.fail_group(failure, events),
            Input::Hangup => events.extend(self.streams.take_gone().map(Event::Cancelled)),
            Input::Shutdown => {
                info!(model = %self.options.model, open = self.streams.len(), "draining");
                self.status.send_modify(|status| status.phase = Phase::Stopping);
                self.drain_until = Some(Instant::now() + self.options.drain_timeout);
                if self.serving.is_none() {
                    self.fail_all(&GenerateError::ShuttingDown, events);
                }
            }
            Input::DrainOver => {
                self.drain_until.get_or_insert_with(Instant::now);
                self.fail_all(&GenerateError::ShuttingDown, events);
            }
        }
    }

    fn submit(&mut self, submission: Submission, events: &mut Vec<Event>) {
        let phase = self.status.borrow().phase.clone();
        if !phase.is_routable() {
            let error =
                SubmitError::NotReady { reason: phase.to_string(), retry_after: RETRY_AFTER };
            // Nobody waits for the answer any more: fine.
            let _ = submission.reply.send(Err(error));
            return;
        }
        events.push(Event::Submitted(self.streams.open(submission)));
    }

    fn obey(&mut self, command: Command, events: &mut Vec<Event>) {
        match command {
            Command::Serve(group) => self.serve(group, events),
            Command::Retire { epoch, reason } => {
                if self.serving.as_ref().is_some_and(|serving| serving.epoch() == epoch) {
                    self.lose_group(reason, events);
                }
            }
            Command::FailAll { reason } => {
                self.fail_all(&GenerateError::GroupLost(reason), events);
            }
        }
    }

    fn serve(&mut self, group: Group, events: &mut Vec<Event>) {
        let (epoch, world_size, limits) = (group.epoch, group.ranks.len(), group.limits);
        self.metrics.formed(world_size, group.kv);
        if self.serving.is_some() {
            events.push(Event::GroupLost);
        }
        events.push(Event::GroupFormed { world_size, limits });
        self.serving = Some(Serving::new(group, self.options.step_deadline));
        self.status.send_modify(|status| {
            if status.phase != Phase::Stopping {
                status.phase = Phase::Ready;
            }
            status.epoch = epoch;
            status.world_size = world_size;
            status.max_model_len = limits.max_model_len;
            status.activity.formed(world_size);
        });
        info!(model = %self.options.model, %epoch, world_size, "group serves");
    }

    /// A rank failed: the supervisor is told, and makes the next epoch.
    fn fail_group(&mut self, failure: GroupFailure, events: &mut Vec<Event>) {
        warn!(model = %self.options.model, epoch = %failure.epoch, reason = failure.reason, "group lost");
        let ran = self.scheduler.stats().running > 0;
        let fruitless = self.serving.as_ref().is_some_and(|serving| !serving.has_committed());
        self.fruitless_groups = if ran && fruitless { self.fruitless_groups + 1 } else { 0 };
        self.lose_group(failure.reason.clone(), events);
        if self.fruitless_groups >= FRUITLESS_GROUPS_MAX {
            self.fruitless_groups = 0;
            self.fail_all(&GenerateError::GroupLost(failure.reason.clone()), events);
        }
        if self.drain_until.is_some() {
            self.fail_all(&GenerateError::ShuttingDown, events);
        }
        // Full or closed: the supervisor is busy with a newer group or gone, and needs no news of this one.
        let _ = self.failures.try_send(failure);
    }

    fn lose_group(&mut self, reason: String, events: &mut Vec<Event>) {
        self.serving = None;
        self.metrics.lost();
        self.streams.group_lost(&reason);
        events.push(Event::GroupLost);
        self.status.send_modify(|status| {
            status.activity.lost();
            if status.phase != Phase::Stopping {
                status.phase = Phase::Recovering { reason };
            }
        });
    }

    fn fail_all(&mut self, error: &GenerateError, events: &mut Vec<Event>) {
        // Those that arrived in this very iteration have been given a stream, but not to the scheduler yet; it takes
        // the events in order, so their cancellation follows them.
        events.extend(self.streams.fail_all(error).into_iter().map(Event::Cancelled));
    }

    /// Plans and sends until two steps are in flight or nothing is left to do.
    fn schedule(&mut self, now: Duration, mut events: Vec<Event>) {
        loop {
            let plan = {
                let _span = debug_span!("scheduler.step", events = events.len()).entered();
                self.scheduler.step(now, std::mem::take(&mut events))
            };
            for update in plan.updates {
                self.tell(update);
            }
            let Some(batch) = plan.batch else { return };
            let Some(serving) = &mut self.serving else { return };
            let (prefill, _) = batch.num_tokens();
            if prefill > 0 {
                self.status.send_modify(|status| status.activity.planned(Instant::now(), prefill));
            }
            self.metrics.planned(&batch);
            let traces = self.streams.traces_of(&batch);
            if let Err(failure) = serving.send(&batch, &self.streams, &traces) {
                self.fail_group(failure, &mut events);
            }
        }
    }

    fn tell(&mut self, update: Update) {
        match update {
            Update::Queued(id) => self.streams.accept(id),
            Update::Refused(id, error) => self.streams.refuse(id, error),
            Update::Started { sequence, waited } => {
                self.metrics.started(waited);
                self.streams.started(sequence);
            }
            Update::Preempted(id) => {
                self.metrics.preempted();
                self.streams.preempted(id);
            }
            Update::Token(id, token) => {
                self.streams.token(id, token);
                self.status.send_modify(|status| {
                    let now = Instant::now();
                    status.last_token = Some(now);
                    status.activity.generated(now);
                });
            }
            Update::Finished(id, reason) => {
                self.streams.finish(id, reason);
                self.status.send_modify(|status| status.activity.answered(Instant::now()));
            }
            Update::Failed(id, reason) => {
                self.streams.fail(id, GenerateError::Constraint(reason));
            }
        }
    }

    fn publish(&self) {
        let stats = self.scheduler.stats();
        self.metrics.stats(&stats);
        self.status.send_modify(|status| status.update(&stats));
    }
}

// === impl GroupStatus ===

impl GroupStatus {
    fn update(&mut self, stats: &Stats) {
        self.running = stats.running;
        self.waiting = stats.waiting;
        self.ranks = stats
            .ranks
            .iter()
            .map(|rank| RankBlocks {
                sequences: rank.running,
                free: rank.free_blocks,
                total: rank.total_blocks,
            })
            .collect();
        if stats.running + stats.waiting == 0 {
            self.busy_since = None;
        } else {
            self.busy_since.get_or_insert_with(Instant::now);
        }
    }
}
