//! The task that takes batches from `validating` to their end.
//!
//! Each batch that runs has a future of its own, and each of its requests in flight another: dropping the runner stops all of
//! them at once. What was committed stays; the rest is done again by whoever takes the batch next.

mod batch;
mod retry;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use metrics::gauge;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::perform::Perform;
use super::record::Status;
use super::{Batches, Error};
use crate::chat::usage::Chain;
use crate::metric_definitions as names;

/// How long a batch is another's after its coordinator's last word, in seconds.
pub(super) const LEASE_SECONDS: i64 = 10;
/// How often a coordinator says that it still runs a batch.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often batches are looked for that another coordinator made, or left.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often batches are counted for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How often files are looked for that have expired.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Runs the batches of a database.
#[derive(Debug)]
pub struct Runner {
    batches: Batches,
    journal: Journal,
    perform: Arc<dyn Perform>,
    /// Requests in flight, over all batches. It is fair, so batches share it.
    permits: Arc<Semaphore>,
}

// === impl Runner ===

impl Runner {
    /// A runner of `batches`, which has requests answered by `perform`.
    #[must_use]
    pub fn new(batches: Batches, perform: Arc<dyn Perform>) -> Self {
        let journal = Journal::new(batches.table.database.clone(), batches.clock.clone());
        let permits = Arc::new(Semaphore::new(batches.limits.concurrency));
        Self { batches, journal, perform, permits }
    }

    /// Runs batches until `stop` is cancelled; then drops what is unfinished, and gives the batches up for others.
    pub async fn run(self, stop: CancellationToken) {
        let both = async { tokio::join!(self.run_batches(), self.keep_house()) };
        stop.run_until_cancelled(both).await;
        if let Err(error) = self.journal.release_all().await {
            tracing::warn!(error = %Chain(&error), "batches are free when their leases end");
        }
    }

    async fn run_batches(&self) {
        let mut running = FuturesUnordered::new();
        let mut changes = self.batches.changes.subscribe();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            while running.len() < self.batches.limits.running_max {
                match self.journal.claim(LEASE_SECONDS).await {
                    Ok(Some(id)) => running.push(self.run_batch(id)),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(error = %Chain(&error), "cannot look for batches");
                        break;
                    }
                }
            }
            tokio::select! {
                Some(()) = running.next() => {}
                // The sender is ours, so it is never closed.
                _ = changes.changed() => {}
                _ = look.tick() => {}
            }
        }
    }

    /// What takes its time, and must not keep batches waiting.
    async fn keep_house(&self) {
        if let Err(error) = self.forget_leftovers().await {
            tracing::error!(error = %Chain(&error), "cannot tidy up batches");
        }
        let mut count = tokio::time::interval(COUNT_EVERY);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                _ = count.tick() => self.count().await,
                _ = sweep.tick() => self.sweep().await,
            }
        }
    }

    async fn forget_leftovers(&self) -> Result<(), Error> {
        for id in self.journal.leftovers().await? {
            self.journal.forget_lines(&id).await?;
        }
        Ok(())
    }

    async fn sweep(&self) {
        match self.batches.files.sweep().await {
            Ok(0) => {}
            Ok(num_files) => tracing::info!(num_files, "expired files are deleted"),
            Err(error) => tracing::error!(error = %Chain(&error), "cannot delete expired files"),
        }
    }

    async fn count(&self) {
        let Ok(statuses) = self.journal.statuses().await else { return };
        for status in Status::ALL {
            let count = statuses.iter().find(|(word, _)| word == status.as_str());
            gauge!(names::BATCHES, names::STATUS => status.as_str())
                .set(count.map_or(0, |(_, count)| *count) as f64);
        }
    }

    /// Runs batches until none can be taken; for tests, which pull at it.
    #[cfg(test)]
    pub(super) async fn run_once(&self) -> Result<usize, Error> {
        let mut num_batches = 0;
        while let Some(id) = self.journal.claim(LEASE_SECONDS).await? {
            self.try_run_batch(&id).await?;
            num_batches += 1;
        }
        Ok(num_batches)
    }
}
