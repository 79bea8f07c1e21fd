//! How a worker is driven. The supervisor and the engine speak to workers only through these traits, so that a whole
//! cluster can be simulated.

use std::fmt;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use switchyard_proto::worker::{
    DescribeResponse, FormGroupRequest, LoadProgress, LoadRequest, RankBatch, StepOutput,
};
use tokio::sync::mpsc;

pub mod grpc;

/// Why a worker did not do what it was asked to.
pub use crate::engine::group::RankError as Error;

/// A stream of a worker's messages.
pub type Messages<T> = BoxStream<'static, Result<T, Error>>;

/// Dials workers.
pub trait Connector: fmt::Debug + Send + Sync {
    /// Connects to the worker whose gRPC server listens on `address` (`host:port`).
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn RankLink>, Error>>;
}

/// The service `switchyard.worker.v1.Worker` of one worker. Dropping a future gives the call up.
pub trait RankLink: fmt::Debug + Send + Sync {
    /// Who the worker is, and what it holds.
    fn describe(&self) -> BoxFuture<'_, Result<DescribeResponse, Error>>;

    /// Reads the rank's experts; the stream ends when all is loaded.
    fn load(&self, request: LoadRequest) -> BoxFuture<'_, Result<Messages<LoadProgress>, Error>>;

    /// Connects the rank to its peers.
    fn form_group(&self, request: FormGroupRequest) -> BoxFuture<'_, Result<(), Error>>;

    /// Opens the stream of steps.
    fn execute(
        &self,
        batches: mpsc::Receiver<RankBatch>,
    ) -> BoxFuture<'_, Result<Messages<StepOutput>, Error>>;
}
