//! What a worker is started with.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use switchyard_moe::ids::ModelId;
use tonic::transport::Uri;

use crate::backend::Numerics;
use crate::backend::device::Device;

/// Time that ranks may wait for each other in one exchange, unless told otherwise. Below the time that the coordinator
/// waits for a step, so that the ranks are the first to notice, who can name the culprit.
pub const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// Everything a [`Worker`](crate::Worker) needs to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// gRPC address of the coordinator, for instance `http://127.0.0.1:50051`.
    pub coordinator: Uri,
    /// The model group to join.
    pub model: ModelId,
    /// Folder with the checkpoint.
    pub model_dir: PathBuf,
    /// How to compute; the whole group must agree.
    pub numerics: Numerics,
    /// Where to compute.
    pub device: Device,
    /// Workers of the group; all must agree. At least 1.
    pub world_size: NonZeroUsize,
    /// Where the worker's gRPC server listens. Port 0 takes a free one.
    pub control_addr: SocketAddr,
    /// Where the peers connect. Port 0 takes a free one.
    pub data_addr: SocketAddr,
    /// Host name or address by which coordinator and peers reach this worker. Needed when it listens on an unspecified
    /// address (`0.0.0.0`, `[::]`); else the address it listens on.
    pub advertise_host: Option<String>,
    /// Certificate, key and authorities of this worker in its cluster. `None`: connections are not protected.
    pub tls: Option<switchyard_tls::Files>,
    /// Threads to compute with.
    pub num_threads: NonZeroUsize,
    /// How long the ranks may wait for each other in one exchange; see [`EXCHANGE_DEADLINE`].
    pub exchange_deadline: Duration,
}
