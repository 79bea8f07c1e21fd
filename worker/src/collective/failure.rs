//! What one rank tells the others when it stops, so that all of them name the same culprit.

use switchyard_moe::ids::{EpRank, GroupEpoch};

use super::{Error, Phase};

/// The first failure of a group, free of who noticed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The rank that is the cause.
    pub(super) culprit: EpRank,
    /// The exchange in which it was noticed; `None` where the cause has no place.
    pub(super) phase: Option<Phase>,
    /// What happened.
    pub(super) cause: Cause,
}

/// The kinds of [`Error`], without the places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The culprit's connection ended, or it was aborted.
    Lost,
    /// The culprit was late.
    Timeout { waited_ms: u64 },
    /// The culprit's frame was of another epoch.
    StaleEpoch { theirs: GroupEpoch, ours: GroupEpoch },
    /// The culprit's frame was malformed.
    Malformed { detail: String },
}

impl Failure {
    /// What peers are told when `observer` stops because of `error`.
    pub(super) fn of(error: &Error, observer: EpRank) -> Self {
        match error {
            Error::PeerLost { culprit, phase, .. } => {
                Self { culprit: *culprit, phase: Some(*phase), cause: Cause::Lost }
            }
            Error::Timeout { culprit, phase, waited_ms, .. } => Self {
                culprit: *culprit,
                phase: Some(*phase),
                cause: Cause::Timeout { waited_ms: *waited_ms },
            },
            Error::StaleEpoch { culprit, theirs, ours } => Self {
                culprit: *culprit,
                phase: None,
                cause: Cause::StaleEpoch { theirs: *theirs, ours: *ours },
            },
            Error::Malformed { culprit, phase, detail } => Self {
                culprit: *culprit,
                phase: Some(*phase),
                cause: Cause::Malformed { detail: detail.clone() },
            },
            // Devices that cannot reach each other are nobody's fault, but whoever stops because of it is not there any more.
            Error::Fabric { phase, .. } => {
                Self { culprit: observer, phase: Some(*phase), cause: Cause::Lost }
            }
            // To its peers, a rank that was told to stop is a rank that stopped.
            Error::Aborted { phase } => {
                Self { culprit: observer, phase: Some(*phase), cause: Cause::Lost }
            }
        }
    }

    /// The error that `observer` returns from `current`, the exchange it was in.
    pub(super) fn observed_by(&self, observer: EpRank, current: Phase) -> Error {
        let culprit = self.culprit;
        match &self.cause {
            Cause::Lost => {
                Error::PeerLost { culprit, observer, phase: self.phase.unwrap_or(current) }
            }
            Cause::Timeout { waited_ms } => Error::Timeout {
                culprit,
                observer,
                phase: self.phase.unwrap_or(current),
                waited_ms: *waited_ms,
            },
            Cause::StaleEpoch { theirs, ours } => {
                Error::StaleEpoch { culprit, theirs: *theirs, ours: *ours }
            }
            Cause::Malformed { detail } => Error::Malformed {
                culprit,
                phase: self.phase.unwrap_or(current),
                detail: detail.clone(),
            },
        }
    }
}
