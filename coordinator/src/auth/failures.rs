//! Failed authentications: all are counted, and so many logged that nobody can fill a disk with them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use super::Denied;
use crate::metric_definitions as names;

/// Shortest time between two lines in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What failed lately. Cheap to clone; clones log together.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    /// Since then, without a line of their own.
    unlogged: u64,
}

/// What was asked for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The HTTP API.
    Http,
    /// The gRPC API.
    Grpc,
    /// The admin API.
    Admin,
}

/// What was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No key came.
    Missing,
    /// Nobody has this key.
    Unknown,
    /// The key is too old.
    Expired,
    /// The key is switched off.
    Inactive,
}

// === impl Failures ===

impl Failures {
    /// Counts a failure, and logs it unless one was logged just now. The key is not part of it.
    pub fn note(&self, door: Door, failure: Failure, peer: Option<SocketAddr>) {
        counter!(names::AUTH_FAILURES_TOTAL, names::API => door.as_str(), names::REASON => failure.as_str())
            .increment(1);
        if let Some(unlogged) = self.due(Instant::now()) {
            tracing::warn!(
                target: "audit",
                api = door.as_str(),
                reason = failure.as_str(),
                peer = peer.map(tracing::field::display),
                unlogged,
                "authentication failed"
            );
        }
    }

    /// As [`Self::note`], if the reason is the key itself and not what it may be used for.
    pub fn note_denied(&self, door: Door, denied: &Denied, peer: Option<SocketAddr>) {
        let failure = match denied {
            Denied::Unknown => Failure::Unknown,
            Denied::Expired => Failure::Expired,
            Denied::Inactive => Failure::Inactive,
            Denied::Model { .. } | Denied::Quota { .. } | Denied::Limit { .. } => return,
        };
        self.note(door, failure, peer);
    }

    /// Whether a line may be written now, and for how many failures besides.
    fn due(&self, now: Instant) -> Option<u64> {
        // No code panics while it holds the lock.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = state.logged.is_none_or(|logged| now >= logged + LOG_INTERVAL);
        if !is_due {
            state.unlogged += 1;
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

// === impl Door ===

impl Door {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Admin => "admin",
        }
    }
}

// === impl Failure ===

impl Failure {
    fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Inactive => "inactive",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_failures_is_one_line_a_second() {
        let failures = Failures::default();
        assert_eq!(failures.due(Instant::now()), Some(0));
        for _ in 0..500 {
            assert_eq!(failures.due(Instant::now()), None);
        }
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(failures.due(Instant::now()), Some(500));
        assert_eq!(failures.due(Instant::now()), None);
    }
}
