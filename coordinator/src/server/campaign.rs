//! The election as a task of the server. It outlives the drain, because until then this coordinator leads.

use std::convert::Infallible;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Error;
use crate::election::{Election, Standing};

/// A running election. Dropped, it ends in its own time.
#[derive(Debug)]
pub(super) struct Campaign {
    task: JoinHandle<()>,
    standing: watch::Receiver<Standing>,
    stop: DropGuard,
}

// === impl Campaign ===

impl Campaign {
    pub(super) fn begin(election: Box<dyn Election>, standing: watch::Sender<Standing>) -> Self {
        let stop = CancellationToken::new();
        let watch = standing.subscribe();
        let task = tokio::spawn(election.run(standing, stop.clone()));
        Self { task, standing: watch, stop: stop.drop_guard() }
    }

    /// Waits until this coordinator leads.
    ///
    /// # Errors
    /// It never will.
    pub(super) async fn won(&mut self) -> Result<(), Error> {
        loop {
            match &*self.standing.borrow_and_update() {
                Standing::Leads => return Ok(()),
                Standing::Lost { reason } => return Err(Error::LostLead(reason.clone())),
                Standing::StandsBy { .. } => {}
            }
            self.changed().await?;
        }
    }

    /// Waits until this coordinator has led and does no more.
    pub(super) async fn lost(&mut self) -> Result<Infallible, Error> {
        loop {
            match &*self.standing.borrow_and_update() {
                Standing::Lost { reason } => return Err(Error::LostLead(reason.clone())),
                Standing::Leads | Standing::StandsBy { .. } => {}
            }
            self.changed().await?;
        }
    }

    /// Gives the lead up, if this coordinator has it, and waits until that is known.
    pub(super) async fn end(self) -> Result<(), Error> {
        drop(self.stop);
        self.task.await.map_err(Error::Task)
    }

    async fn changed(&mut self) -> Result<(), Error> {
        let ended = |_| Error::LostLead("the election ended unexpectedly".to_owned());
        self.standing.changed().await.map_err(ended)
    }
}
