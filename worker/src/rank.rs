//! The thread that owns the device: one command at a time, in the order in which they were given.
//!
//! [`Handle`] is the way in. Between commands the thread sleeps; within a step it waits only for its peers, and
//! [`AllToAll::abort_handle`] ends that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, thread};

use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, debug_span, info, info_span};

use crate::collective::{self, AllToAll};
use crate::metric_definitions as metric;
use crate::model::{self, Progress};
use crate::step::{StepBatch, StepResult};
use crate::trace::{Spans, Trace};

pub mod runner;
#[cfg(test)]
mod tests;

pub use runner::{Plan, StepRunner};

/// A collective as the rank thread holds it.
pub type Collective = Box<dyn AllToAll<Buffer = Vec<u8>>>;

/// Commands that may wait: the steps in flight, and what changes the group.
const COMMANDS_MAX: usize = 8;

/// Why a step was not computed. Whatever the reason, the rank has left its group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rank is not in the step's group.
    #[error("step {step} belongs to epoch {theirs}, this rank is in {}", in_epoch(*.ours))]
    NotInGroup {
        /// The step.
        step: StepId,
        /// Epoch of the step.
        theirs: GroupEpoch,
        /// Epoch of the rank, if it is in a group.
        ours: Option<GroupEpoch>,
    },
    /// The model refused the step, or an exchange failed.
    #[error("rank {rank} could not compute step {step}")]
    Step {
        /// This rank.
        rank: EpRank,
        /// The step.
        step: StepId,
        /// The cause.
        #[source]
        source: model::Error,
    },
    /// The thread is gone: it panicked, or the worker is stopping.
    #[error("the rank's thread has stopped")]
    Stopped,
}

fn in_epoch(epoch: Option<GroupEpoch>) -> String {
    epoch.map_or_else(|| "no group".to_owned(), |epoch| format!("epoch {epoch}"))
}

/// The way to a rank's thread. Cheap to clone; the thread ends when all clones are dropped.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    num_sequences: Arc<AtomicUsize>,
}

/// Resolves when the rank's thread has ended.
#[derive(Debug)]
pub struct Stopped(oneshot::Receiver<()>);

/// A step to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The epoch of its group.
    pub epoch: GroupEpoch,
    /// Its number in the epoch.
    pub step: StepId,
    /// This rank's part of it.
    pub batch: StepBatch,
    /// Traces that it is told in.
    pub traces: Vec<Trace>,
}

/// A load under way.
#[derive(Debug)]
pub struct Loading {
    /// How far it has come; `None` until it begins.
    pub progress: watch::Receiver<Option<Progress>>,
    /// How it ended.
    pub done: oneshot::Receiver<Result<(), model::Error>>,
}

/// A step under way; an answer that never comes means that the thread is gone.
pub type PendingStep = oneshot::Receiver<Result<StepResult, Error>>;

#[derive(Debug)]
enum Command {
    Load {
        plan: Arc<Plan>,
        progress: watch::Sender<Option<Progress>>,
        done: oneshot::Sender<Result<(), model::Error>>,
    },
    Join {
        collective: Collective,
        done: oneshot::Sender<()>,
    },
    Step {
        step: Step,
        done: oneshot::Sender<Result<StepResult, Error>>,
    },
    Leave {
        epoch: GroupEpoch,
        done: oneshot::Sender<()>,
    },
}

/// What the thread owns.
#[derive(Debug)]
struct Rank<R> {
    runner: R,
    collective: Option<Collective>,
    num_sequences: Arc<AtomicUsize>,
    experts: metric::ExpertMeters,
    /// Whether the device has failed. Only another process can use it again, so the thread ends, and the worker with it.
    is_lost: bool,
}

/// Starts the thread of a rank that computes with `runner`.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn spawn<R: StepRunner>(runner: R) -> io::Result<(Handle, Stopped)> {
    let (sender, mut commands) = mpsc::channel(COMMANDS_MAX);
    let (alive, stopped) = oneshot::channel();
    let num_sequences = Arc::new(AtomicUsize::new(0));
    let handle = Handle { commands: sender, num_sequences: Arc::clone(&num_sequences) };
    thread::Builder::new().name("rank".to_owned()).spawn(move || {
        // Dropped when the thread ends, in whatever way.
        let _alive: oneshot::Sender<()> = alive;
        let experts = metric::ExpertMeters::default();
        let mut rank = Rank { runner, collective: None, num_sequences, experts, is_lost: false };
        while let Some(command) = commands.blocking_recv() {
            rank.obey(command);
            if rank.is_lost {
                break;
            }
        }
    })?;
    Ok((handle, Stopped(stopped)))
}

// === impl Handle ===

impl Handle {
    /// Loads what `plan` asks for, keeping what is there already. The rank leaves its group first.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn load(&self, plan: Arc<Plan>) -> Result<Loading, Error> {
        let (progress, progressed) = watch::channel(None);
        let (done, is_done) = oneshot::channel();
        self.send(Command::Load { plan, progress, done }).await?;
        Ok(Loading { progress: progressed, done: is_done })
    }

    /// Makes the rank a member of the group of `collective`, with no sequences.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn join(&self, collective: Collective) -> Result<(), Error> {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Join { collective, done }).await?;
        is_done.await.map_err(|_| Error::Stopped)
    }

    /// Queues a step.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn step(&self, step: Step) -> Result<PendingStep, Error> {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Step { step, done }).await?;
        Ok(is_done)
    }

    /// Leaves the group of `epoch`, if the rank is in it, and drops its sequences. Returns when the steps queued
    /// before are over.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn leave(&self, epoch: GroupEpoch) -> Result<(), Error> {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Leave { epoch, done }).await?;
        is_done.await.map_err(|_| Error::Stopped)
    }

    /// Sequences whose state the rank holds.
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        self.num_sequences.load(Ordering::Relaxed)
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }
}

impl Stopped {
    /// Waits for the end of the thread.
    pub async fn wait(&mut self) {
        // Nothing is ever sent: the sender is dropped with the thread.
        let _ = (&mut self.0).await;
    }
}

// === impl Rank ===

impl<R: StepRunner> Rank<R> {
    /// Carries out one command. Nobody may be left to hear the answer; that is no failure.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Load { plan, progress, done } => {
                self.leave();
                let result = self.load(&plan, &progress);
                let _ = done.send(result);
            }
            Command::Join { collective, done } => {
                self.leave();
                metric::group_epoch(collective.epoch().0);
                self.collective = Some(collective);
                let _ = done.send(());
            }
            Command::Step { step, done } => {
                let result = self.step(&step);
                self.publish();
                let _ = done.send(result);
            }
            Command::Leave { epoch, done } => {
                if self.epoch() == Some(epoch) {
                    self.leave();
                }
                let _ = done.send(());
            }
        }
    }

    /// Shows how many sequences live here.
    fn publish(&self) {
        let num_sequences = self.runner.num_sequences();
        self.num_sequences.store(num_sequences, Ordering::Relaxed);
        metric::sequences(num_sequences);
    }

    fn epoch(&self) -> Option<GroupEpoch> {
        self.collective.as_ref().map(|collective| collective.epoch())
    }

    fn load(
        &mut self,
        plan: &Plan,
        progress: &watch::Sender<Option<Progress>>,
    ) -> Result<(), model::Error> {
        let _span = info_span!("rank.load", rank = %plan.rank).entered();
        self.runner.load(plan, &mut |done| {
            progress.send_replace(Some(done));
        })
    }

    fn step(&mut self, step: &Step) -> Result<StepResult, Error> {
        let &Step { epoch, step, ref batch, ref traces } = step;
        let ours = self.epoch();
        let Some(collective) = self.collective.as_mut().filter(|_| ours == Some(epoch)) else {
            return Err(Error::NotInGroup { step, theirs: epoch, ours });
        };
        let rank = collective.rank();
        let _span =
            debug_span!("rank.step", %epoch, %step, num_chunks = batch.chunks.len()).entered();
        let spans = Spans::begin(traces, (rank, epoch, step));
        let computed = self.runner.step(step, batch, collective.as_mut());
        spans.end(&computed);
        match computed {
            Ok(result) => {
                metric::step_done(&result.timings, result.samples.len());
                self.experts.step_done(&result.expert_rows);
                Ok(result)
            }
            Err(source) => {
                metric::step_failed(culprit(&source));
                self.is_lost = matches!(source, model::Error::Fault { .. });
                info!(%epoch, %step, error = %crate::chain(&source), "left the group");
                self.leave();
                Err(Error::Step { rank, step, source })
            }
        }
    }

    /// Closes the connections to the peers and forgets all sequences: in another group they begin anew.
    fn leave(&mut self) {
        if let Some(collective) = self.collective.take() {
            debug!(epoch = %collective.epoch(), "leaving the group");
            metric::group_epoch(0);
        }
        self.runner.clear();
        self.publish();
    }
}

/// The rank that an exchange failed because of.
fn culprit(error: &model::Error) -> Option<EpRank> {
    match error {
        model::Error::Collective { source, .. } => match source {
            collective::Error::PeerLost { culprit, .. }
            | collective::Error::Timeout { culprit, .. }
            | collective::Error::StaleEpoch { culprit, .. }
            | collective::Error::Malformed { culprit, .. } => Some(*culprit),
            collective::Error::Aborted { .. } | collective::Error::Fabric { .. } => None,
        },
        model::Error::Checkpoint(_)
        | model::Error::Device(_)
        | model::Error::Fault { .. }
        | model::Error::Placement(_)
        | model::Error::Batch { .. } => None,
    }
}
