//! What is in files: objects of a folder, or of an object store that speaks S3.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::io::AsyncWriteExt as _;

use super::{Error, FileId};
use crate::options::FileStore;

/// What is written at once. Object stores want parts of at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file that are on their way at the same time.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// Where files are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Contents {
    store: Arc<dyn ObjectStore>,
    /// What the names of our objects begin with.
    prefix: Path,
}

/// A file that is being written. Nobody sees it before [`finish`](Self::finish).
#[derive(Debug)]
pub struct Sink(BufWriter);

/// Why there is no place for files.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made.
    #[error("cannot make the folder {} for files", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A setting is not one of the store's.
    #[error("cannot use the file store {url}")]
    Store {
        /// As given.
        url: String,
        /// What is wrong.
        #[source]
        source: object_store::Error,
    },
}

// === impl Contents ===

impl Contents {
    /// Opens a store; makes a missing folder. An object store is not asked for anything yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(place: &FileStore) -> Result<Self, OpenError> {
        match place {
            FileStore::Folder(path) => {
                let failed = |source| OpenError::Folder { path: path.clone(), source };
                std::fs::create_dir_all(path).map_err(failed)?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(|source| {
                    OpenError::Store { url: path.display().to_string(), source }
                })?;
                // What a client was told of must outlive a power failure.
                Ok(Self { store: Arc::new(store.with_fsync(true)), prefix: Path::default() })
            }
            FileStore::S3 { bucket, prefix, settings } => {
                let failed = |source| OpenError::Store { url: format!("s3://{bucket}"), source };
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
                for (name, value) in settings {
                    // The environment has settings of other programs, too.
                    if let Ok(key) = name.to_ascii_lowercase().parse() {
                        builder = builder.with_config(key, value.expose());
                    }
                }
                let store = builder.build().map_err(failed)?;
                Ok(Self { store: Arc::new(store), prefix: Path::from(prefix.as_str()) })
            }
        }
    }

    fn path(&self, id: &FileId) -> Path {
        self.prefix.clone().join(id.as_str())
    }

    /// Begins to write a file.
    pub(super) fn write(&self, id: &FileId) -> Sink {
        let writer = BufWriter::with_capacity(Arc::clone(&self.store), self.path(id), PART_BYTES);
        Sink(writer.with_max_concurrency(PARTS_IN_FLIGHT_MAX))
    }

    pub(super) async fn read(
        &self,
        id: &FileId,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let found = self.store.get(&self.path(id)).await.map_err(failed("read a file", id))?;
        let id = id.clone();
        Ok(found.into_stream().map_err(move |error| failed("read a file", &id)(error)).boxed())
    }

    pub(super) async fn read_range(
        &self,
        id: &FileId,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, Error> {
        self.store.get_range(&self.path(id), range).await.map_err(failed("read a file", id))
    }

    /// Deletes a file, if it is there.
    pub(super) async fn delete(&self, id: &FileId) -> Result<(), Error> {
        match self.store.delete(&self.path(id)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete a file", id)(error)),
        }
    }
}

// === impl Sink ===

impl Sink {
    /// Adds what comes next; waits while the store is slower.
    ///
    /// # Errors
    /// [`Error::Contents`].
    pub async fn put(&mut self, piece: Bytes) -> Result<(), Error> {
        let put = self.0.put(piece).await;
        put.map_err(|source| Error::Contents { action: "write a file", source })
    }

    /// Makes the file appear, whole.
    ///
    /// # Errors
    /// [`Error::Contents`].
    pub async fn finish(mut self) -> Result<(), Error> {
        let closed = self.0.shutdown().await;
        closed.map_err(|error| {
            let source = object_store::Error::Generic { store: "file", source: error.into() };
            Error::Contents { action: "write a file", source }
        })
    }

    /// Takes back what was written.
    pub async fn abort(mut self) {
        if let Err(error) = self.0.abort().await {
            tracing::warn!(%error, "a part of a file that nobody wants stays in the file store");
        }
    }
}

fn failed(action: &'static str, id: &FileId) -> impl FnOnce(object_store::Error) -> Error {
    let id = id.clone();
    move |source| {
        if matches!(source, object_store::Error::NotFound { .. }) {
            return Error::NotFound { id };
        }
        Error::Contents { action, source }
    }
}
