//! The worker process: checkpoint and device first, then the ports, then the registration, so that nothing half-started
//! is announced.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use sha2::{Digest as _, Sha256};
use switchyard_proto::worker::worker_server::WorkerServer;
use switchyard_tls::incoming::incoming;
use switchyard_tls::{Acceptor, Role, Security, Usage, peer};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic_health::pb::health_server::{Health, HealthServer};
use tracing::{info, warn};

use crate::backend::device::Compiled;
use crate::collective::tcp::Listener;
use crate::model;
use crate::options::Options;
use crate::rank::runner::CheckpointRunner;
use crate::rank::{self, StepRunner, Stopped};
use crate::registration::{self, Registration};
use crate::service::{Identity, Service};
use crate::weights::{self, Checkpoint};

/// Version of this binary; coordinator and workers must be of one.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A silent connection is asked for a sign of life this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A connection that gives no sign of life for so long is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message that the coordinator may send: a placement of 64 layers and 1024 experts, or a step of 64 Ki tokens,
/// several times over.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// How long steps in flight, then open calls, may take when the worker stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Why a worker does not start, or stops early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is in use, or the address is not this machine's.
    #[error("cannot listen on {address} ({what})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What was to listen there.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The checkpoint is refused.
    #[error("cannot serve the checkpoint")]
    Checkpoint(#[from] weights::Error),
    /// The device is missing, or refused.
    #[error(transparent)]
    Device(#[from] model::Error),
    /// Certificate, key or authorities of the cluster cannot be used.
    #[error("TLS cannot be set up")]
    Tls(#[from] switchyard_tls::Error),
    /// Nobody could reach the worker.
    #[error("{0} says nothing about how to reach this worker; set the host to advertise")]
    AdvertiseHost(SocketAddr),
    /// The operating system refused the rank's thread.
    #[error("cannot start the rank's thread")]
    Thread(#[source] io::Error),
    /// The coordinator refused the worker, or put it out.
    #[error("the coordinator does not take this worker")]
    Registration(#[from] registration::Error),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
    /// The thread that computes panicked; its message is in the log.
    #[error("the rank's thread ended unexpectedly")]
    RankStopped,
}

/// A worker that listens but is not registered yet.
#[derive(Debug)]
pub struct Worker {
    control: TcpListener,
    acceptor: Acceptor,
    service: Service,
    registration: Registration,
    rank_stopped: Stopped,
}

// === impl Worker ===

impl Worker {
    /// Opens and checks the checkpoint and the device, and binds the ports.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let (dir, device, numerics) =
            (options.model_dir.clone(), options.device.clone(), options.numerics);
        let (fingerprint, checkpoint) = blocking(move || {
            let opened = (weights::fingerprint(&dir)?, Checkpoint::open(&dir)?);
            device.prepare(numerics, &mut Compiled::log)?;
            Ok::<_, Error>(opened)
        })
        .await?;
        let checkpoint = Arc::new(checkpoint);
        let shape = Shape {
            num_layers: checkpoint.config().num_hidden_layers,
            num_experts: checkpoint.config().n_routed_experts,
            fingerprint,
        };
        let runner = CheckpointRunner::new(checkpoint, options.clone());
        Self::bind_with(options, shape, runner).await
    }

    /// [`bind`](Self::bind) with a given runner in the place of a checkpoint.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_with(
        options: Options,
        shape: Shape,
        runner: impl StepRunner,
    ) -> Result<Self, Error> {
        let (device, num_threads) = (options.device.clone(), options.num_threads);
        let device = blocking(move || registration::device::describe(&device, num_threads)).await?;
        let listen_error = |address, what| move |source| Error::Bind { address, what, source };
        let control = TcpListener::bind(options.control_addr)
            .await
            .map_err(listen_error(options.control_addr, "control plane"))?;
        let control_addr =
            control.local_addr().map_err(listen_error(options.control_addr, "control plane"))?;
        let usage = Usage::Cluster(Role::Worker);
        let security = Security::open(options.tls.as_ref(), usage).await?;
        let listener = Listener::bind(options.data_addr, &security)
            .await
            .map_err(listen_error(options.data_addr, "data plane"))?;
        let registration = Registration::new(
            &options,
            &security,
            device,
            shape.fingerprint.clone(),
            [advertise(&options, control_addr)?, advertise(&options, listener.local_addr())?],
        );
        let identity = Identity {
            version: VERSION.to_owned(),
            model: options.model.clone(),
            num_layers: shape.num_layers,
            num_experts: shape.num_experts,
            fingerprint: group_fingerprint(&options, &shape.fingerprint),
            exchange_deadline: options.exchange_deadline,
        };
        let (rank, rank_stopped) = rank::spawn(runner).map_err(Error::Thread)?;
        let service = Service::new(identity, listener, rank);
        let acceptor = security.acceptor(switchyard_tls::Service::Control);
        Ok(Self { control, acceptor, service, registration, rank_stopped })
    }

    /// `host:port` of the gRPC server, as the coordinator is told.
    #[must_use]
    pub fn control_address(&self) -> &str {
        self.registration.control_address()
    }

    /// `host:port` of the data plane, as the coordinator is told.
    #[must_use]
    pub fn data_address(&self) -> &str {
        self.registration.data_address()
    }

    /// Registers and serves until `shutdown` is cancelled or the coordinator asks the worker to exit.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { control, acceptor, service, registration, mut rank_stopped } = self;
        info!(
            control = registration.control_address(),
            data = registration.data_address(),
            "worker listens"
        );
        let stop_serving = CancellationToken::new();
        let connections = incoming(control, acceptor);
        let server = tokio::spawn(serve(connections, service.clone(), stop_serving.clone()));
        let mut server = AbortOnDrop(server);
        let result = tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            () = rank_stopped.wait() => Err(Error::RankStopped),
            ended = registration.hold() => ended.map_err(Error::from),
            ended = &mut server.0 => match ended {
                Ok(ended) => ended.map_err(Error::from),
                Err(_) => Ok(()),
            },
        };
        // By now the lease is gone, so the coordinator makes the next epoch without this worker.
        if timeout(STOP_GRACE, service.stop()).await.is_err() {
            warn!("steps were still in flight after {STOP_GRACE:?}, they are aborted");
            service.abort();
        }
        stop_serving.cancel();
        let _ = timeout(STOP_GRACE, &mut server.0).await;
        result
    }
}

/// What a worker must know of its model before it is loaded.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Layers.
    pub num_layers: usize,
    /// Routed experts of each layer.
    pub num_experts: usize,
    /// Names the checkpoint.
    pub fingerprint: String,
}

#[derive(Debug)]
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves gRPC on connections that came to the control port.
async fn serve(
    connections: impl Stream<Item = io::Result<switchyard_tls::Stream>>,
    service: Service,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let worker = WorkerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(health().await)
        .add_service(InterceptedService::new(worker, peer::only(Role::Coordinator)))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await
}

async fn health() -> HealthServer<impl Health> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<WorkerServer<Service>>().await;
    health
}

/// Runs what may take long on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    // The task does not panic; if it did, so must we.
    done.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => unreachable!("nobody cancels it: {cancelled}"),
    })
}

/// `host:port` by which others reach what listens on `bound`.
fn advertise(options: &Options, bound: SocketAddr) -> Result<String, Error> {
    match &options.advertise_host {
        // An IPv6 address goes into brackets.
        Some(host) if host.contains(':') && !host.starts_with('[') => {
            Ok(format!("[{host}]:{}", bound.port()))
        }
        Some(host) => Ok(format!("{host}:{}", bound.port())),
        None if bound.ip().is_unspecified() => Err(Error::AdvertiseHost(bound)),
        None => Ok(bound.to_string()),
    }
}

/// By which ranks recognise each other: same model, same checkpoint, same numerics.
fn group_fingerprint(options: &Options, checkpoint: &str) -> [u8; 32] {
    let text = format!("{}\n{checkpoint}\n{}", options.model, options.numerics);
    Sha256::digest(text.as_bytes()).into()
}
