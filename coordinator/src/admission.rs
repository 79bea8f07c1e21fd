//! A bound on the requests in flight that somebody waits for, over all models and both APIs.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metric_definitions::REQUESTS_IN_FLIGHT;
use crate::scheduler::Priority;

/// Hands out permits up to a limit. Nobody waits: a full server says so at once.
#[derive(Debug)]
pub struct Admission {
    permits: Arc<Semaphore>,
    in_flight_max: usize,
}

/// The right to be in flight; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    /// `None` for a batch's request, which takes no place from others.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// At most `in_flight_max` permits at once.
    #[must_use]
    pub fn new(in_flight_max: usize) -> Self {
        let in_flight_max = in_flight_max.min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(in_flight_max)), in_flight_max }
    }

    /// A permit, or `None` when all are out. Those of batches are not counted here: who runs batches bounds them.
    #[must_use]
    pub fn admit(&self, priority: Priority) -> Option<Permit> {
        let permit = match priority {
            Priority::Interactive => Some(Arc::clone(&self.permits).try_acquire_owned().ok()?),
            Priority::Batch => None,
        };
        metrics::gauge!(REQUESTS_IN_FLIGHT).increment(1.0);
        Some(Permit { _permit: permit })
    }

    /// The limit.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        metrics::gauge!(REQUESTS_IN_FLIGHT).decrement(1.0);
    }
}
