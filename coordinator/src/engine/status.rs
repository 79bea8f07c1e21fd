//! What a model group tells about itself: for readiness, for `status`, for messages.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use switchyard_moe::ids::{EpRank, GroupEpoch, WorkerId};
use tokio::time::Instant;

use super::activity::Activity;

/// Faults that are remembered.
const FAULTS_MAX: usize = 8;

/// Where a model group stands in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Too few workers have registered for a first group.
    WaitingForWorkers {
        /// Workers registered.
        have: usize,
        /// Workers of a group; unknown until the first one registers.
        want: Option<usize>,
    },
    /// Workers read their experts for the first time.
    Loading {
        /// Fraction loaded by each rank, 0..=1.
        ranks: Vec<f32>,
    },
    /// Workers connect to each other for the first time.
    Forming,
    /// Steps run.
    Ready,
    /// The next epoch is being made; streams wait and new requests are queued.
    Recovering {
        /// What happened, naming the culprit.
        reason: String,
    },
    /// The workers left cannot hold the model; streams wait, new requests are refused.
    Unavailable {
        /// What happened, naming the culprit.
        reason: String,
    },
    /// The coordinator is shutting down.
    Stopping,
}

/// A snapshot of one model group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupStatus {
    /// Where the group stands.
    pub phase: Phase,
    /// The newest epoch; 0 before the first.
    pub epoch: GroupEpoch,
    /// Ranks of the newest epoch.
    pub world_size: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Sequences that hold blocks on a rank.
    pub running: usize,
    /// Sequences that wait for a place.
    pub waiting: usize,
    /// KV blocks, by rank; empty while no group serves.
    pub ranks: Vec<RankBlocks>,
    /// Who the ranks of the newest group are, by rank.
    pub members: Vec<RankMember>,
    /// What went wrong lately, oldest first.
    pub faults: VecDeque<Fault>,
    /// What was done in the last seconds.
    pub activity: Activity,
    /// When the last token was accepted.
    pub last_token: Option<Instant>,
    /// When work last arrived at an idle group; `None` while there is none.
    pub busy_since: Option<Instant>,
}

/// A worker in its place in the group.
#[derive(Clone, Debug, PartialEq)]
pub struct RankMember {
    /// Its id.
    pub worker: WorkerId,
    /// Where the coordinator drives it, `host:port`.
    pub address: String,
    /// Its process on its machine.
    pub pid: u32,
    /// What it computes on.
    pub device: String,
    /// Share of its experts that it has loaded, 0..=1.
    pub loaded: f32,
    /// Whether it was lost, and no newer group has been begun.
    pub is_lost: bool,
}

/// What ended an epoch, or kept one from being formed.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// When it was noticed.
    pub at: Instant,
    /// One of [`FAULTS`](crate::metric_definitions::FAULTS).
    pub kind: &'static str,
    /// The culprits, as far as they are known.
    pub ranks: Vec<EpRank>,
    /// The epoch that ended, or the last one before that which was not formed.
    pub epoch: GroupEpoch,
    /// What happened, naming the culprit.
    pub message: String,
}

/// Sequences and KV blocks of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankBlocks {
    /// Sequences that live there.
    pub sequences: usize,
    /// Blocks that no sequence holds.
    pub free: usize,
    /// Blocks of the rank's pool.
    pub total: usize,
}

// === impl Phase ===

impl Phase {
    /// What [`Phase::name`] can give.
    pub const NAMES: [&str; 7] = [
        "waiting_for_workers",
        "loading",
        "forming",
        "ready",
        "recovering",
        "unavailable",
        "stopping",
    ];

    /// The phase in one word, for programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::WaitingForWorkers { .. } => "waiting_for_workers",
            Self::Loading { .. } => "loading",
            Self::Forming => "forming",
            Self::Ready => "ready",
            Self::Recovering { .. } => "recovering",
            Self::Unavailable { .. } => "unavailable",
            Self::Stopping => "stopping",
        }
    }

    /// Whether a request sent now will be served: the group runs, or comes back on its own.
    #[must_use]
    pub fn is_routable(&self) -> bool {
        match self {
            Self::Ready | Self::Recovering { .. } => true,
            Self::WaitingForWorkers { .. }
            | Self::Loading { .. }
            | Self::Forming
            | Self::Unavailable { .. }
            | Self::Stopping => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForWorkers { have, want: Some(want) } => {
                write!(f, "{have} of {want} workers have registered")
            }
            Self::WaitingForWorkers { .. } => f.write_str("no worker has registered"),
            Self::Loading { ranks } => {
                f.write_str("loading: ")?;
                for (rank, fraction) in ranks.iter().enumerate() {
                    let separator = if rank == 0 { "" } else { ", " };
                    write!(f, "{separator}rank {rank} {:.0} %", fraction * 100.0)?;
                }
                Ok(())
            }
            Self::Forming => f.write_str("workers are connecting to each other"),
            Self::Ready => f.write_str("ready"),
            Self::Recovering { reason } => write!(f, "recovering: {reason}"),
            Self::Unavailable { reason } => write!(f, "unavailable: {reason}"),
            Self::Stopping => f.write_str("the server is shutting down"),
        }
    }
}

// === impl GroupStatus ===

impl GroupStatus {
    /// The status of a group that no worker has joined.
    #[must_use]
    pub fn new(max_model_len: usize) -> Self {
        Self {
            phase: Phase::WaitingForWorkers { have: 0, want: None },
            epoch: GroupEpoch(0),
            world_size: 0,
            max_model_len,
            running: 0,
            waiting: 0,
            ranks: Vec::new(),
            members: Vec::new(),
            faults: VecDeque::new(),
            activity: Activity::default(),
            last_token: None,
            busy_since: None,
        }
    }

    /// Remembers a fault, and that its culprits are gone.
    pub fn add_fault(&mut self, fault: Fault) {
        for rank in &fault.ranks {
            if let Some(member) = self.members.get_mut(rank.0 as usize) {
                member.is_lost = true;
            }
        }
        if self.faults.len() == FAULTS_MAX {
            self.faults.pop_front();
        }
        self.faults.push_back(fault);
    }

    /// How long there has been work without a token, or `None` without work.
    #[must_use]
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        let since = self.busy_since?;
        let last = self.last_token.map_or(since, |token| token.max(since));
        Some(now.saturating_duration_since(last))
    }
}
