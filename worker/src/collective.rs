//! The all-to-all between the ranks of a group: `dispatch` carries token rows to the ranks that hold their experts,
//! `combine` carries expert rows back.

use std::fmt;

use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};

mod failure;
pub mod local;
pub mod loopback;
pub mod tcp;
#[cfg(feature = "cuda")]
pub mod link;
#[cfg(feature = "cuda")]
pub mod nccl;
#[cfg(feature = "cuda")]
pub mod staged;

/// Which exchange of which step a frame belongs to. All ranks of a group pass the same sequence of phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phase {
    /// The step.
    pub step: StepId,
    /// The layer.
    pub layer: u32,
    /// Out or back.
    pub direction: Direction,
}

/// Direction of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Token rows to the ranks that hold their experts.
    #[default]
    Dispatch,
    /// Expert rows back to the ranks that own the tokens.
    Combine,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Dispatch => "dispatch",
            Direction::Combine => "combine",
        };
        write!(f, "step {} layer {} {direction}", self.step, self.layer)
    }
}

/// Why an exchange failed. Names the rank that is the cause, not the one that noticed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer's connection ended.
    #[error("rank {culprit} stopped before {phase}; rank {observer} waited for it")]
    PeerLost {
        /// The rank that is gone.
        culprit: EpRank,
        /// This rank.
        observer: EpRank,
        /// The exchange it did not take part in.
        phase: Phase,
    },
    /// A peer is connected but sent nothing before the deadline.
    #[error(
        "rank {culprit} did not reach {phase} within {waited_ms} ms; rank {observer} waited for it"
    )]
    Timeout {
        /// The rank that is late.
        culprit: EpRank,
        /// This rank.
        observer: EpRank,
        /// The exchange it did not take part in.
        phase: Phase,
        /// Time waited.
        waited_ms: u64,
    },
    /// A peer speaks of another epoch or phase.
    #[error("rank {culprit} sent a frame of epoch {theirs}, this group is in epoch {ours}")]
    StaleEpoch {
        /// The sender.
        culprit: EpRank,
        /// Epoch of the frame.
        theirs: GroupEpoch,
        /// Epoch of this group.
        ours: GroupEpoch,
    },
    /// A peer sent a frame that does not belong to the phase.
    #[error("rank {culprit} sent a malformed frame in {phase}: {detail}")]
    Malformed {
        /// The sender.
        culprit: EpRank,
        /// The exchange.
        phase: Phase,
        /// What was wrong.
        detail: String,
    },
    /// Every rank is there, but the devices could not exchange.
    #[error("the devices could not exchange in {phase}, as rank {observer} saw it: {detail}")]
    Fabric {
        /// This rank.
        observer: EpRank,
        /// The exchange.
        phase: Phase,
        /// What the device or its library reported.
        detail: String,
    },
    /// [`AbortHandle::abort`] was called.
    #[error("the exchange was aborted before {phase}")]
    Aborted {
        /// The exchange that was to begin or was under way.
        phase: Phase,
    },
}

/// Exchanges one buffer with every rank of the group, itself included.
///
/// Every rank calls [`exchange`](Self::exchange) with the same sequence of phases, once each, with an empty buffer for
/// a peer it has nothing for. After an error the collective is dead: the next epoch makes a new one.
pub trait AllToAll: Send + fmt::Debug {
    /// Where rows live: host bytes for `tcp` and `local`, device memory for NCCL.
    type Buffer: Send;

    /// This rank.
    fn rank(&self) -> EpRank;

    /// Ranks of the group.
    fn world_size(&self) -> usize;

    /// The epoch whose frames this collective sends and accepts.
    fn epoch(&self) -> GroupEpoch;

    /// Sends `outbound[r]` to rank `r` and fills `inbound[r]` with what rank `r` sent here; both are
    /// `[world_size]`. Buffers in `inbound` are reused, their contents replaced.
    ///
    /// # Errors
    /// See [`Error`]; never later than the collective's deadline.
    fn exchange(
        &mut self,
        phase: Phase,
        outbound: &[Self::Buffer],
        inbound: &mut [Self::Buffer],
    ) -> Result<(), Error>;

    /// A handle by which another thread ends a waiting exchange.
    fn abort_handle(&self) -> Box<dyn AbortHandle>;
}

/// Ends the exchanges of a collective from another thread. Idempotent.
pub trait AbortHandle: Send + Sync + fmt::Debug {
    /// The exchange under way, and every later one, returns [`Error::Aborted`].
    fn abort(&self);

    /// Whether that was asked for.
    fn is_aborted(&self) -> bool;
}
