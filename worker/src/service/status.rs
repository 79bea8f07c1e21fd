//! Errors as gRPC statuses: the one place where that is decided. A status carries the whole chain of causes, because
//! its message is all that the coordinator sees.

use switchyard_moe::ids::{EpRank, GroupEpoch};
use tonic::Status;

use super::wire::FieldError;
use crate::collective;
use crate::collective::tcp::JoinError;
use crate::{chain, model, rank};

/// A field of a message is wrong.
pub(super) fn field(error: &FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The message belongs to an epoch that is over, or not the rank's.
pub(super) fn stale_epoch(theirs: GroupEpoch, ours: GroupEpoch) -> Status {
    Status::failed_precondition(format!("epoch {theirs} is stale, this worker is in epoch {ours}"))
}

/// The mesh did not come about.
pub(super) fn join(error: &JoinError) -> Status {
    let message = chain(error);
    match error {
        JoinError::Stale { .. } | JoinError::Refused { .. } => Status::failed_precondition(message),
        JoinError::Superseded { .. } => Status::aborted(message),
        JoinError::Unreachable { .. } | JoinError::Missing { .. } => Status::unavailable(message),
        JoinError::Io { .. } => Status::internal(message),
    }
}

/// The rank could not load.
pub(super) fn load(rank: EpRank, error: &model::Error) -> Status {
    Status::failed_precondition(format!("rank {rank} cannot load: {}", chain(error)))
}

/// The rank did not do what it was asked to.
pub(super) fn rank(error: &rank::Error) -> Status {
    match error {
        rank::Error::NotInGroup { .. } => Status::failed_precondition(chain(error)),
        rank::Error::Stopped => Status::internal(chain(error)),
        rank::Error::Step { source, .. } => match source {
            // The exchange's own words name the culprit, the observer and the place.
            model::Error::Collective { source, .. } => exchange(source),
            model::Error::Batch { .. } => Status::invalid_argument(chain(error)),
            model::Error::Checkpoint(_)
            | model::Error::Device(_)
            | model::Error::Fault { .. }
            | model::Error::Placement(_) => Status::internal(chain(error)),
        },
    }
}

fn exchange(error: &collective::Error) -> Status {
    let message = error.to_string();
    match error {
        collective::Error::PeerLost { .. } => Status::unavailable(message),
        collective::Error::Timeout { .. } => Status::deadline_exceeded(message),
        collective::Error::Aborted { .. } => Status::aborted(message),
        collective::Error::StaleEpoch { .. } => Status::failed_precondition(message),
        collective::Error::Malformed { .. } => Status::data_loss(message),
        collective::Error::Fabric { .. } => Status::internal(message),
    }
}
