//! The rank's part in one group, from FormGroup to its end.

use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_moe::ids::GroupEpoch;
use tokio::sync::watch;

use crate::collective::{AbortHandle, AllToAll};

/// One membership, shared by the service and the stream of steps.
#[derive(Debug)]
pub(super) struct Membership {
    epoch: GroupEpoch,
    abort: Box<dyn AbortHandle>,
    life: watch::Sender<Life>,
    is_executing: AtomicBool,
}

/// How far a membership has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Steps are taken.
    Active,
    /// No more steps are taken, those in flight may end. Says why.
    Draining(String),
    /// The step in flight was aborted. Says why.
    Left(String),
}

// === impl Membership ===

impl Membership {
    pub(super) fn new<B: Send>(collective: &dyn AllToAll<Buffer = B>) -> Self {
        Self {
            epoch: collective.epoch(),
            abort: collective.abort_handle(),
            life: watch::Sender::new(Life::Active),
            is_executing: AtomicBool::new(false),
        }
    }

    pub(super) fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    /// Claims the one stream of steps; false if there is one.
    pub(super) fn claim(&self) -> bool {
        !self.is_executing.swap(true, Ordering::AcqRel)
    }

    /// Ends the membership. What has ended stays as it ended, but a drain can still become a leave.
    pub(super) fn end(&self, life: Life) {
        if matches!(life, Life::Left(_)) {
            self.abort.abort();
        }
        self.life.send_if_modified(|current| {
            let changes = !matches!(current, Life::Left(_)) && *current != life;
            if changes {
                *current = life;
            }
            changes
        });
    }

    /// Waits for the end, and tells it.
    pub(super) async fn ended(&self) -> Life {
        let mut life = self.life.subscribe();
        // Cannot fail: the sender is in `self`.
        life.wait_for(|life| *life != Life::Active)
            .await
            .map_or_else(|_| Life::Left(String::new()), |life| life.clone())
    }

    /// Waits until the steps in flight were aborted, and tells why.
    pub(super) async fn left(&self) -> String {
        let mut life = self.life.subscribe();
        let left = life.wait_for(|life| matches!(life, Life::Left(_))).await;
        match left.as_deref() {
            Ok(Life::Left(reason)) => reason.clone(),
            Ok(Life::Active | Life::Draining(_)) | Err(_) => String::new(),
        }
    }
}
