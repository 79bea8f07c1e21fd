//! The loop around a [`Candidate`]: asks for the lease, keeps it, and stops in time.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::candidate::{Candidate, Move, Record, Stored, Timing};
use super::{Election, Standing};
use crate::chat::usage::Chain;

/// Longest time that giving the lease up may take: the others need not wait for it if it fails.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the lease is kept. Of two who write over the same version, one fails.
pub(super) trait LeaseStore: fmt::Debug + Send + Sync + 'static {
    /// What is stored; `None`: nothing yet.
    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>>;

    /// Stores a record in place of `over`, and tells what is stored then.
    fn write<'a>(
        &'a self,
        record: &'a Record,
        over: Option<&'a Stored>,
    ) -> BoxFuture<'a, Result<Stored, StoreError>>;
}

/// Why the lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Somebody else has written in between.
    #[error("another coordinator wrote the lease in the same moment")]
    Conflict,
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The store says no, or cannot be reached.
    #[error("the lease cannot be read or written")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An election by a lease.
#[derive(Debug)]
pub(super) struct LeaseElection<S> {
    candidate: Candidate,
    identity: String,
    timing: Timing,
    store: S,
    /// What went wrong last, so that it is logged once.
    trouble: Option<String>,
}

// === impl LeaseElection ===

impl<S: LeaseStore> LeaseElection<S> {
    /// A candidate by the name of `identity`.
    pub(super) fn new(identity: &str, timing: Timing, store: S) -> Self {
        // A process that comes after one that died must not take that one's lease for its own.
        let identity = format!("{identity}_{}", Uuid::new_v4());
        let candidate = Candidate::new(identity.clone(), timing);
        Self { candidate, identity, timing, store, trouble: None }
    }

    async fn campaign(mut self, standing: watch::Sender<Standing>, stop: CancellationToken) {
        info!(identity = self.identity, "stands for election");
        if stop.run_until_cancelled(self.win(&standing)).await.is_none() {
            return;
        }
        info!(identity = self.identity, "leads");
        standing.send_replace(Standing::Leads);
        match stop.run_until_cancelled(self.keep()).await {
            Some(reason) => self.lose(&standing, reason),
            None => self.resign().await,
        }
    }

    fn lose(&self, standing: &watch::Sender<Standing>, reason: String) {
        error!(identity = self.identity, reason, "leads no longer");
        standing.send_replace(Standing::Lost { reason });
    }

    /// Asks for the lease until it has it.
    async fn win(&mut self, standing: &watch::Sender<Standing>) {
        while !self.attempt().await {
            let leader = self.candidate.leader().map(str::to_owned);
            standing.send_if_modified(|standing| {
                let now = Standing::StandsBy { leader };
                let is_news = *standing != now;
                *standing = now;
                is_news
            });
            sleep(self.timing.retry()).await;
        }
    }

    /// Renews the lease until that fails for too long, and tells why.
    async fn keep(&mut self) -> String {
        loop {
            let Some(leads_until) = self.candidate.leads_until() else {
                return "it never led".to_owned();
            };
            let renewal = async {
                sleep(self.timing.retry()).await;
                self.attempt().await
            };
            tokio::select! {
                // After a pause of the whole process both may be due.
                biased;
                () = sleep_until(leads_until) => {
                    let trouble = self.trouble.take().unwrap_or_else(|| "no answer".to_owned());
                    let within = self.timing.renew_deadline().as_secs();
                    return format!("the lease was not renewed within {within} s: {trouble}");
                }
                is_ours = renewal => {
                    if !is_ours && let Some(other) = self.other() {
                        return format!("{other} has the lease");
                    }
                }
            }
        }
    }

    fn other(&self) -> Option<String> {
        let leader = self.candidate.leader()?;
        (leader != self.identity).then(|| leader.to_owned())
    }

    /// Tries once to get or to renew the lease. Whether it did.
    async fn attempt(&mut self) -> bool {
        // So that one request without an answer leaves time for another.
        let limit = self.timing.renew_deadline() / 2;
        let attempt = timeout(limit, self.try_once());
        match attempt.await.unwrap_or(Err(StoreError::Timeout(limit))) {
            Ok(is_ours) => {
                self.trouble = None;
                is_ours
            }
            Err(error) => {
                let trouble = Chain(&error).to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    warn!(error = trouble, "cannot get or renew the lease, trying again");
                }
                self.trouble = Some(trouble);
                false
            }
        }
    }

    async fn try_once(&mut self) -> Result<bool, StoreError> {
        let began = Instant::now();
        let stored = self.store.read().await?;
        self.candidate.saw(stored, Instant::now());
        match self.candidate.next_move(Instant::now()) {
            Move::Wait => Ok(false),
            Move::Write(record) => {
                let stored = self.store.write(&record, self.candidate.seen()).await?;
                self.candidate.wrote(stored, began, Instant::now());
                Ok(true)
            }
        }
    }

    /// Lets another lead at once. If it fails, another leads when the lease is over.
    async fn resign(&self) {
        let Some(record) = self.candidate.resignation() else { return };
        let written = timeout(RESIGN_TIMEOUT, self.store.write(&record, self.candidate.seen()));
        match written.await.unwrap_or(Err(StoreError::Timeout(RESIGN_TIMEOUT))) {
            Ok(_) => info!(identity = self.identity, "the lease is given up"),
            Err(error) => warn!(error = %Chain(&error), "the lease is not given up"),
        }
    }
}

impl<S: LeaseStore> Election for LeaseElection<S> {
    fn run(
        self: Box<Self>,
        standing: watch::Sender<Standing>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.campaign(standing, stop))
    }
}
