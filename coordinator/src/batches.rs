//! Batches: requests in a file, answered while nobody else wants the cluster.
//!
//! - [`record`]: what a client is told of a batch.
//! - `table`: that, in the database of the keys.
//! - `journal`: what a runner has done, durable step by step.
//! - `input`: the requests in a file, checked.
//! - [`perform`]: how one of them is answered.
//! - [`runner`]: the task that takes batches from `validating` to their end.
//! - `output`: the files that a batch leaves behind.
//!
//! # What a crash may cost
//! Nothing but work. An answer is committed in one transaction with the batch's counts and the key's charge, and only if the
//! request had no answer yet: so every request has exactly one, and is paid once, however often it was computed. The
//! files of a batch are made of these answers, under ids that were chosen before; writing them again gives the same.
//!
//! # Several coordinators
//! A batch is run by whoever holds its lease, a row's owner and the time at which it ends. Each commit names the owner, so
//! one who lost the lease, and does not know it yet, commits nothing. Clocks need not agree for that; they decide only
//! how soon a dead coordinator's batches go on.

pub mod record;
pub mod perform;
pub mod runner;
mod table;
mod journal;
mod input;
mod output;

use std::sync::Arc;

use tokio::sync::watch;

use crate::auth::clock::Clock;
use crate::auth::database::Database;
use crate::auth::{KeyId, KeyStore};
use crate::files::contents::{Contents, OpenError};
use crate::files::{self, FileRecord, Files, Page, Purpose};
use crate::options::{BatchLimits, Options, default_file_store};
pub use record::{BatchId, BatchRecord, Endpoint, ListBatches, NewBatch, Status};
use table::Table;

#[cfg(test)]
mod tests;

/// Seconds that a batch may take.
const WINDOW_SECONDS: i64 = 86_400;

/// All batches that a coordinator knows of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Batches {
    table: Table,
    files: Files,
    clock: Clock,
    limits: Arc<BatchLimits>,
    /// Counts what clients change, so that the runner looks at once.
    changes: watch::Sender<u64>,
}

/// Why a batch cannot be had, or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is another key's, or never was.
    #[error("there is no batch {id:?}; it is another key's, or never was")]
    NotFound {
        /// As asked for.
        id: BatchId,
    },
    /// The file is no input.
    #[error(
        "the file {id} is for {purpose:?}; the input of a batch is uploaded with purpose \"batch\""
    )]
    NotInput {
        /// The file.
        id: files::FileId,
        /// What it is for.
        purpose: &'static str,
    },
    /// The batch is over, or nearly.
    #[error("the batch {id} is {}, so it cannot be cancelled", .status.as_str())]
    NotCancellable {
        /// The batch.
        id: BatchId,
        /// How far it is.
        status: Status,
    },
    /// The key has as many batches as it may.
    #[error(
        "the API key has {max} batches that are not over, which is this server's limit; retry when one is"
    )]
    TooMany {
        /// The limit.
        max: u32,
    },
    /// A file cannot be had.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The database does not do what it should.
    #[error("cannot {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
}

// === impl Batches ===

impl Batches {
    /// The batches that are known to a database.
    #[must_use]
    pub(crate) fn new(
        database: Database,
        files: Files,
        clock: Clock,
        limits: Arc<BatchLimits>,
    ) -> Self {
        Self { table: Table::new(database), files, clock, limits, changes: watch::channel(0).0 }
    }

    /// The batches in the database of the keys, with files beside it or elsewhere.
    ///
    /// # Errors
    /// [`OpenError`], when there is no place for files.
    pub fn open(options: &Options, keys: &KeyStore) -> Result<Self, OpenError> {
        let place = options.file_store.clone();
        let place = place.unwrap_or_else(|| default_file_store(&options.data_dir));
        let contents = Contents::open(&place)?;
        let (database, clock) = (keys.database().clone(), keys.clock().clone());
        let limits = Arc::new(options.files.clone());
        let files = Files::new(database.clone(), contents, clock.clone(), limits);
        Ok(Self::new(database, files, clock, Arc::new(options.batches.clone())))
    }

    /// The files of the same keys.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Makes a batch. It is checked later.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::NotInput`], [`Error::TooMany`], [`Error::Database`].
    pub async fn create(&self, owner: KeyId, new: NewBatch) -> Result<BatchRecord, Error> {
        let input: FileRecord = self.files.get(owner, &new.input).await?;
        if input.purpose != Purpose::Batch {
            let purpose = input.purpose.as_str();
            return Err(Error::NotInput { id: input.id, purpose });
        }
        let max = self.limits.per_key_max;
        if self.table.count_open(owner).await? >= i64::from(max) {
            return Err(Error::TooMany { max });
        }
        let now = self.clock.unix_seconds();
        let record = BatchRecord::new(owner, new, now, now.saturating_add(WINDOW_SECONDS));
        if !self.table.insert(&record).await? {
            return Err(files::Error::NotFound { id: record.input }.into());
        }
        self.notify();
        Ok(record)
    }

    /// A page of a key's batches, the latest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self, owner: KeyId, list: &ListBatches) -> Result<Page<BatchRecord>, Error> {
        self.table.list(owner, list).await
    }

    /// A batch of a key.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Database`].
    pub async fn get(&self, owner: KeyId, id: &BatchId) -> Result<BatchRecord, Error> {
        let found = self.table.get(id).await?.filter(|batch| batch.owner == owner);
        found.ok_or_else(|| Error::NotFound { id: id.clone() })
    }

    /// Has a batch end early. Requests without an answer get none.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotCancellable`], [`Error::Database`].
    pub async fn cancel(&self, owner: KeyId, id: &BatchId) -> Result<BatchRecord, Error> {
        self.get(owner, id).await?;
        self.table.cancel(id, self.clock.unix_seconds()).await?;
        self.notify();
        let batch = self.get(owner, id).await?;
        match batch.status {
            Status::Cancelling | Status::Cancelled => Ok(batch),
            Status::Validating
            | Status::InProgress
            | Status::Finalizing
            | Status::Failed
            | Status::Completed
            | Status::Expired => {
                Err(Error::NotCancellable { id: id.clone(), status: batch.status })
            }
        }
    }

    fn notify(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}
