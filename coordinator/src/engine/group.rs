//! A formed group, as the supervisor hands it to the engine, and what the engine reports back.

use std::fmt;

use futures::stream::BoxStream;
use switchyard_moe::capacity::BlockBytes;
use switchyard_moe::ids::{EpRank, GroupEpoch};
use switchyard_proto::worker::{RankBatch, StepOutput};
use tokio::sync::{mpsc, watch};

use super::status::{Fault, GroupStatus, Phase, RankMember};
use crate::scheduler::Limits;

/// One epoch of a group, ready to take steps.
#[derive(Debug)]
pub struct Group {
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// What its ranks have room for.
    pub limits: Limits,
    /// What that costs.
    pub kv: KvBytes,
    /// Its ranks in order, `[world_size]`.
    pub ranks: Vec<RankStream>,
}

/// Bytes of a rank's KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvBytes {
    /// Of each block that a sequence holds.
    pub block: BlockBytes,
    /// Of each sequence besides: its window, and the tokens not compressed yet.
    pub window: usize,
}

/// The open `Execute` stream of one rank. Dropping it ends the rank's part in the epoch.
pub struct RankStream {
    /// Batches to the rank; room for all steps in flight.
    pub batches: mpsc::Sender<RankBatch>,
    /// Outputs of the rank, one per batch.
    pub outputs: BoxStream<'static, Result<StepOutput, RankError>>,
}

/// Why a rank did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// The connection to the worker is gone, so its own words are not known.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The worker's own words.
    #[error("{0}")]
    Failed(String),
}

/// The end of an epoch, as the engine saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFailure {
    /// The epoch that ended.
    pub epoch: GroupEpoch,
    /// What happened, naming the culprit.
    pub reason: String,
    /// Ranks to which the connection is gone, or which did not answer in time.
    pub suspects: Vec<EpRank>,
}

/// What the supervisor asks of the engine.
#[derive(Debug)]
pub enum Command {
    /// Take steps with this group from now on.
    Serve(Group),
    /// Stop using the group of this epoch, if it is still in use.
    Retire {
        /// The epoch that ends.
        epoch: GroupEpoch,
        /// Why, naming the culprit.
        reason: String,
    },
    /// Give up every sequence.
    FailAll {
        /// Why, for the sequences' owners.
        reason: String,
    },
}

/// The supervisor's end of an engine.
#[derive(Debug)]
pub struct Remote {
    commands: mpsc::Sender<Command>,
    failures: mpsc::Receiver<GroupFailure>,
    status: watch::Sender<GroupStatus>,
}

// === impl RankStream ===

impl fmt::Debug for RankStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RankStream").finish_non_exhaustive()
    }
}

// === impl Remote ===

impl Remote {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        failures: mpsc::Receiver<GroupFailure>,
        status: watch::Sender<GroupStatus>,
    ) -> Self {
        Self { commands, failures, status }
    }

    /// Sends a command. An engine that has stopped obeys nobody, which is what its supervisor wants then.
    pub async fn command(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// The failure of the group of `epoch`. Those of earlier epochs are passed over. Cancel safe.
    pub async fn failure(&mut self, epoch: GroupEpoch) -> GroupFailure {
        while let Some(failure) = self.failures.recv().await {
            if failure.epoch == epoch {
                return failure;
            }
        }
        // The engine has stopped; so will the supervisor.
        std::future::pending().await
    }

    /// Publishes who will be the ranks of the next epoch.
    pub fn set_members(&self, members: Vec<RankMember>) {
        self.status.send_modify(|status| status.members = members);
    }

    /// Publishes how much of its experts a rank has loaded, 0..=1.
    pub fn set_loaded(&self, rank: EpRank, loaded: f32) {
        self.status.send_modify(|status| {
            if let Some(member) = status.members.get_mut(rank.0 as usize) {
                member.loaded = loaded;
            }
        });
    }

    /// Publishes a fault.
    pub fn add_fault(&self, fault: Fault) {
        self.status.send_modify(|status| status.add_fault(fault));
    }

    /// Publishes where the group stands, unless it is stopping.
    pub fn set_phase(&self, phase: Phase) {
        self.update_phase(|current| *current = phase);
    }

    /// Changes the published phase in place, unless the group is stopping.
    pub fn update_phase(&self, update: impl FnOnce(&mut Phase)) {
        self.status.send_modify(|status| {
            if status.phase != Phase::Stopping {
                update(&mut status.phase);
            }
        });
    }
}
