//! Why a coordinator does not start, or stops early.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::chat::usage::Chain;
use crate::{auth, chat, cluster, election, files};

/// Why a coordinator does not start, or stops early. Nothing is left half started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {api}: {}", .source)]
    Bind {
        /// `HTTP`, `gRPC` or `admin`.
        api: &'static str,
        /// The address as given.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data folder cannot be made.
    #[error("cannot create the data folder {}", .path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There is no model to serve, or one has no name.
    #[error("{0}")]
    Models(&'static str),
    /// Certificates or keys of TLS cannot be used.
    #[error("TLS cannot be set up: {}", Chain(.0))]
    Tls(switchyard_tls::Error),
    /// The database of keys cannot be used.
    #[error(transparent)]
    Keys(#[from] auth::Error),
    /// A model's files cannot be used.
    #[error(transparent)]
    Model(#[from] chat::model::Error),
    /// There is no place for files.
    #[error(transparent)]
    Files(#[from] files::contents::OpenError),
    /// The model groups cannot be set up, or failed.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// gRPC reflection cannot read our own descriptors.
    #[error("cannot set up gRPC reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The election cannot be held.
    #[error("the election of a leader cannot be held")]
    Election(#[from] election::Error),
    /// Another coordinator leads, or may: this one has stopped and can be started again.
    #[error("this coordinator leads no longer: {0}")]
    LostLead(String),
    /// A task panicked.
    #[error("a task of the server ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}
