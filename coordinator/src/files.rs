//! Files that clients upload for batches, and those that batches write.
//!
//! - [`record`]: what is known of a file.
//! - [`contents`]: what is in it, in a folder or an object store.
//! - `table`: the records, in the database of the keys.
//!
//! A file belongs to the key that uploaded it; others are told that there is none. Its row is written before its contents
//! and goes after them, so nothing is ever kept that no row knows of: [`Files::sweep`] ends what a crash left half done.

pub mod record;
pub mod contents;
mod table;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::auth::KeyId;
use crate::auth::clock::Clock;
use crate::auth::database::Database;
use crate::options::FileLimits;
use contents::{Contents, Sink};
pub use record::{FileId, FileRecord, ListFiles, NewFile, Page, Purpose};
use table::Table;

#[cfg(test)]
mod tests;

/// All files of a coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    table: Table,
    contents: Contents,
    clock: Clock,
    limits: Arc<FileLimits>,
}

/// A file on its way in. Dropped unfinished, it is swept away later.
#[derive(Debug)]
pub struct Upload {
    files: Files,
    owner: KeyId,
    id: FileId,
    sink: Sink,
    bytes: u64,
}

/// Why a file cannot be had, or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is another key's, gone, or never was.
    #[error("there is no file {id:?}; it is another key's, was deleted, or has expired")]
    NotFound {
        /// As asked for.
        id: FileId,
    },
    /// A batch still reads it.
    #[error("the file {id} is the input of a batch that is not over; cancel the batch first")]
    InUse {
        /// As asked for.
        id: FileId,
    },
    /// The key has as many files as it may.
    #[error("the API key has {max} files, which is this server's limit; delete some")]
    TooMany {
        /// The limit.
        max: u32,
    },
    /// The file is too large.
    #[error("the file is larger than {max} bytes, which is this server's limit")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// The database does not do what it should.
    #[error("cannot {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The contents cannot be reached.
    #[error("cannot {action} in the file store")]
    Contents {
        /// What was tried.
        action: &'static str,
        /// What the store said.
        #[source]
        source: object_store::Error,
    },
}

// === impl Files ===

impl Files {
    /// The files that are known to a database, with their contents elsewhere.
    #[must_use]
    pub(crate) fn new(
        database: Database,
        contents: Contents,
        clock: Clock,
        limits: Arc<FileLimits>,
    ) -> Self {
        Self { table: Table::new(database), contents, clock, limits }
    }

    /// Bounds on files.
    #[must_use]
    pub fn limits(&self) -> &FileLimits {
        &self.limits
    }

    /// Begins a file of a key.
    ///
    /// # Errors
    /// [`Error::TooMany`], [`Error::Database`].
    pub async fn begin(&self, owner: KeyId) -> Result<Upload, Error> {
        let now = self.clock.unix_seconds();
        let max = self.limits.files_per_key_max;
        if self.table.count(owner).await? >= i64::from(max) {
            return Err(Error::TooMany { max });
        }
        let id = FileId::generate();
        self.table.begin(&id, owner, now).await?;
        let sink = self.contents.write(&id);
        Ok(Upload { files: self.clone(), owner, id, sink, bytes: 0 })
    }

    /// A page of a key's files.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn list(&self, owner: KeyId, list: &ListFiles) -> Result<Page<FileRecord>, Error> {
        self.table.list(owner, list, self.clock.unix_seconds()).await
    }

    /// A file of a key.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Database`].
    pub async fn get(&self, owner: KeyId, id: &FileId) -> Result<FileRecord, Error> {
        let found = self.table.get(owner, id, self.clock.unix_seconds()).await?;
        found.ok_or_else(|| Error::NotFound { id: id.clone() })
    }

    /// What is in a file, piece by piece.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Contents`].
    pub async fn read(
        &self,
        id: &FileId,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        self.contents.read(id).await
    }

    /// A part of what is in a file.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Contents`].
    pub async fn read_range(
        &self,
        id: &FileId,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, Error> {
        self.contents.read_range(id, range).await
    }

    /// Deletes a file of a key.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`], [`Error::Database`]. When only the contents could not be deleted, that is
    /// done later, and no error.
    pub async fn delete(&self, owner: KeyId, id: &FileId) -> Result<(), Error> {
        self.get(owner, id).await?;
        if !self.table.mark_deleted(id).await? {
            return Err(Error::InUse { id: id.clone() });
        }
        if let Err(error) = self.erase(id).await {
            tracing::warn!(file.id = %id, error = %crate::chat::usage::Chain(&error), "a deleted file is swept later");
        }
        Ok(())
    }

    /// Deletes what has expired, and what uploads left that never ended. Returns how many files.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Contents`]; the rest is for the next time.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let now = self.clock.unix_seconds();
        let pending_since = now - self.limits.pending_kept_seconds();
        let ids = self.table.to_sweep(now, pending_since).await?;
        let mut num_swept = 0;
        for id in ids {
            // A batch may have begun to read it meanwhile.
            if self.table.mark_deleted(&id).await? {
                self.erase(&id).await?;
                num_swept += 1;
            }
        }
        Ok(num_swept)
    }

    async fn erase(&self, id: &FileId) -> Result<(), Error> {
        self.contents.delete(id).await?;
        self.table.forget(id).await
    }

    /// Writes the contents of a file whose row comes later. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Contents`].
    pub(crate) fn write(&self, id: &FileId) -> Sink {
        self.contents.write(id)
    }

    /// When a file of this purpose expires that is made now.
    #[must_use]
    pub(crate) fn expiry(&self, expires_after: Option<i64>) -> Option<i64> {
        let after = expires_after.or_else(|| self.limits.expires_after_seconds());
        after.map(|seconds| self.clock.unix_seconds().saturating_add(seconds))
    }
}

// === impl Upload ===

impl Upload {
    /// Adds what comes next.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Contents`]; the file is to be dropped then.
    pub async fn put(&mut self, piece: Bytes) -> Result<(), Error> {
        let max = self.files.limits.file_bytes_max;
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.bytes > max {
            return Err(Error::TooLarge { max });
        }
        self.sink.put(piece).await
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the file. It is durable when this returns.
    ///
    /// # Errors
    /// [`Error::Contents`], [`Error::Database`].
    pub async fn finish(self, new: NewFile) -> Result<FileRecord, Error> {
        let Self { files, owner, id, sink, bytes } = self;
        sink.finish().await?;
        let now = files.clock.unix_seconds();
        let record = FileRecord {
            id,
            owner,
            purpose: new.purpose,
            filename: new.filename,
            bytes,
            created_at: now,
            expires_at: files.expiry(new.expires_after),
        };
        files.table.finish(&record).await?;
        Ok(record)
    }

    /// Takes back what was written.
    pub async fn abort(self) {
        let Self { files, id, sink, .. } = self;
        sink.abort().await;
        if let Err(error) = files.erase(&id).await {
            tracing::warn!(file.id = %id, error = %crate::chat::usage::Chain(&error), "an upload is swept later");
        }
    }
}
