//! Starts and stops everything: listeners, database, tokenizers, model groups.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use switchyard_moe::ids::ModelId;
use switchyard_proto::FILE_DESCRIPTOR_SET;
use switchyard_proto::cluster::cluster_server::ClusterServer;
use switchyard_proto::inference::inference_server::InferenceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::TcpIncoming;

use crate::auth::ledger;
use crate::auth::{self, Accounts, KeyStore};
use crate::batches::Batches;
use crate::chat::model::Model;
use crate::chat::usage::Chain;
use crate::chat::{self, Chat, Served};
use crate::cluster::{self, ModelGroupOptions};
use crate::engine::observe;
use crate::engine::status::GroupStatus;
use crate::http::admin::Admin;
use crate::http::models::Catalog;
use crate::options::{ModelOptions, Options};
use crate::{files, grpc, http};

#[cfg(test)]
mod tests;

/// Name under which the bootstrap key is listed.
const BOOTSTRAP_KEY_NAME: &str = "bootstrap";
/// After the last answer is complete: how long clients get to read it, and workers to go.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the recorder of metrics tidies up, and gauges of the groups are set.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A ping on idle gRPC connections, so that both sides notice a dead peer.
const GRPC_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Builds coordinators.
#[derive(Debug)]
pub struct Coordinator;

/// A coordinator whose ports are taken, database open and tokenizers loaded; nothing is served yet.
#[derive(Debug)]
pub struct Bound {
    http: TcpListener,
    http_addr: SocketAddr,
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    admin: Option<(TcpListener, SocketAddr)>,
    cluster: cluster::Service,
    ledger: ledger::Writer,
    context: http::Context,
}

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
    /// A listener failed while serving.
    #[error("the {api} server failed")]
    Serve {
        /// `HTTP`, `gRPC` or `admin`.
        api: &'static str,
        /// The failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A task panicked.
    #[error("a task of the server ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

/// The task that records usage. It outlives all others, and ends by itself when this is dropped.
struct LedgerTask {
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// The tasks of a running coordinator.
type Tasks = JoinSet<Result<(), Error>>;

// === impl Coordinator ===

impl Coordinator {
    /// Takes the ports, opens the database and loads the models' tokenizers. Serves nothing yet.
    ///
    /// # Errors
    /// See [`Error`]; everything taken is given back.
    pub async fn bind(options: Options) -> Result<Bound, Error> {
        let models = load_models(&options.models)?;
        let (http, http_addr) = listen("HTTP", options.http).await?;
        let (grpc, grpc_addr) = listen("gRPC", options.grpc).await?;
        let admin = match options.admin.as_ref().and_then(|admin| admin.listen) {
            Some(address) => Some(listen("admin", address).await?),
            None => None,
        };
        let keys = open_keys(&options).await?;
        let batches = Batches::open(&options, &keys)?;
        let (cluster, groups) = cluster::Service::new(group_options(&options, &models))?;
        let served = models.into_iter().filter_map(|model| {
            let engine = groups.get(&ModelId::new(model.id()))?.clone();
            Some(Served { model, engine: Arc::new(engine) })
        });
        let chat = Chat::new(served.collect(), options.limits.in_flight_requests_max)
            .with_compat(options.compat);
        let limits = Arc::new(options.limits);
        let (accounts, ledger) = Accounts::new(keys.clone());
        let context = http::Context {
            chat: Arc::new(chat),
            accounts,
            admin: options.admin.map(|admin| Admin::new(keys, &admin, Arc::clone(&limits))),
            responses: Arc::default(),
            batches,
            limits,
            catalog: Arc::new(Catalog::new(&options.models)),
            playground: options.playground,
            metrics: options.metrics,
            draining: CancellationToken::new(),
        };
        Ok(Bound { http, http_addr, grpc, grpc_addr, admin, cluster, ledger, context })
    }
}

// === impl Bound ===

impl Bound {
    /// Where the HTTP API listens.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where gRPC listens.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where the admin API listens, if it has a listener of its own.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// The keys of clients.
    #[must_use]
    pub fn keys(&self) -> &KeyStore {
        self.context.accounts.keys()
    }

    /// Each model's id and status, now and later.
    #[must_use]
    pub fn statuses(&self) -> Vec<(String, watch::Receiver<GroupStatus>)> {
        statuses(&self.context.chat)
    }

    /// Serves until `shutdown` is cancelled, then drains: no new requests, running answers get their time to finish,
    /// workers are asked to go.
    ///
    /// # Errors
    /// A server or a model group failed; the others were stopped.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let draining = self.context.draining.clone();
        let cluster_done = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let ledger = self.spawn(&mut tasks, &cluster_done)?;
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            result = early_end(&mut tasks) => result,
        };
        tracing::info!("draining");
        draining.cancel();
        let drained = drain(tasks, &cluster_done).await;
        // Only now nobody uses anything any more.
        let recorded = ledger.finish().await;
        ended.and(drained).and(recorded)
    }

    fn spawn(
        self,
        tasks: &mut Tasks,
        cluster_done: &CancellationToken,
    ) -> Result<LedgerTask, Error> {
        let Self { http, grpc, admin, cluster, ledger, context, .. } = self;
        let draining = context.draining.clone();
        let (health_reporter, health_server) = tonic_health::server::health_reporter();
        let inference = grpc::Inference::new(Arc::clone(&context.chat), context.accounts.clone());
        let inference = InferenceServer::new(inference)
            .max_decoding_message_size(context.limits.body_bytes_max);
        let grpc_server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(GRPC_KEEPALIVE_INTERVAL))
            .add_service(ClusterServer::new(cluster.registrar()))
            .add_service(inference)
            .add_service(health_server)
            .add_service(reflection().build_v1().map_err(Error::Reflection)?)
            .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?);
        // Workers' leases are gRPC streams, so this server outlives the cluster.
        let grpc_stop = cluster_done.clone().cancelled_owned();
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        tasks.spawn(async move {
            let served = grpc_server.serve_with_incoming_shutdown(incoming, grpc_stop).await;
            served.map_err(|source| Error::Serve { api: "gRPC", source: source.into() })
        });

        serve_http(tasks, ("HTTP", http), http::router(context.clone()), &draining);
        if let (Some((listener, _)), Some(admin)) = (admin, context.admin.clone()) {
            serve_http(tasks, ("admin", listener), http::admin::router(admin), &draining);
        }

        let done = cluster_done.clone().drop_guard();
        let stop = draining.clone();
        tasks.spawn(async move {
            let _done = done;
            Ok(cluster.run(stop).await?)
        });
        let stop = draining.clone();
        let metrics = context.metrics.clone();
        let statuses = statuses(&context.chat);
        tasks.spawn(async move {
            let mut upkeep = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
            while stop.run_until_cancelled(upkeep.tick()).await.is_some() {
                metrics.run_upkeep();
                for (model, status) in &statuses {
                    observe::record(model, &status.borrow(), Instant::now());
                }
            }
            Ok(())
        });
        let runner = http::batches::runner(&context);
        let stop = draining.clone();
        tasks.spawn(async move {
            runner.run(stop).await;
            Ok(())
        });
        let stop = draining.clone();
        let responses = context.responses;
        tasks.spawn(async move {
            stop.cancelled().await;
            responses.drained().await;
            Ok(())
        });
        tasks.spawn(async move {
            grpc::health::follow(context.chat, health_reporter, draining).await;
            Ok(())
        });
        Ok(LedgerTask::spawn(ledger))
    }
}

// === impl LedgerTask ===

impl LedgerTask {
    fn spawn(writer: ledger::Writer) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(writer.run(stop.clone())), stop: stop.drop_guard() }
    }

    /// Waits until everything is recorded, or given up.
    async fn finish(self) -> Result<(), Error> {
        drop(self.stop);
        self.task.await.map_err(Error::Task)
    }
}

fn statuses(chat: &Chat) -> Vec<(String, watch::Receiver<GroupStatus>)> {
    chat.models().map(|served| (served.model.id().to_owned(), served.engine.watch())).collect()
}

/// Serves a router on a listener until `draining` is cancelled and all answers are out.
fn serve_http(
    tasks: &mut Tasks,
    (api, listener): (&'static str, TcpListener),
    router: Router,
    draining: &CancellationToken,
) {
    let listener = listener.tap_io(|connection| {
        // Small events must not wait for each other. Without the option they only come later.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let stop = draining.clone().cancelled_owned();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tasks.spawn(async move {
        let served = axum::serve(listener, service).with_graceful_shutdown(stop).await;
        served.map_err(|source| Error::Serve { api, source: source.into() })
    });
}

/// Waits for the first task to end. Before draining none should.
async fn early_end(tasks: &mut Tasks) -> Result<(), Error> {
    match tasks.join_next().await {
        Some(ended) => ended.map_err(Error::Task)?,
        None => Ok(()),
    }
}

/// Waits until the cluster has drained, which it does in bounded time, then a little for bytes to be read.
async fn drain(mut tasks: Tasks, cluster_done: &CancellationToken) -> Result<(), Error> {
    let mut result = Ok(());
    tokio::select! {
        () = cluster_done.cancelled() => {}
        () = join_all(&mut tasks, &mut result) => {}
    }
    let flushed = tokio::time::timeout(FLUSH_TIMEOUT, join_all(&mut tasks, &mut result)).await;
    if flushed.is_err() {
        tracing::warn!("some connections did not close in time and were cut");
    }
    tasks.shutdown().await;
    result
}

/// Waits for all tasks and keeps the first error.
async fn join_all(tasks: &mut Tasks, result: &mut Result<(), Error>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended.map_err(Error::Task).flatten() {
            tracing::error!(error = %Chain(&error), "a server task failed");
            if result.is_ok() {
                *result = Err(error);
            }
        }
    }
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn load_models(options: &[ModelOptions]) -> Result<Vec<Model>, Error> {
    if options.is_empty() {
        return Err(Error::Models("there is no model to serve; name at least one"));
    }
    if options.iter().any(|model| model.id.is_empty()) {
        return Err(Error::Models("a model's id must not be empty"));
    }
    options.iter().map(|options| Ok(Model::load(options)?)).collect()
}

fn group_options(options: &Options, models: &[Model]) -> Vec<ModelGroupOptions> {
    let group = |(options, model): (&ModelOptions, &Model), drain| {
        let mut group =
            ModelGroupOptions::new(ModelId::new(model.id()), Arc::new(model.config().clone()));
        group.numerics = options.numerics;
        group.cache = options.cache;
        group.cache.max_model_len = usize::try_from(model.context_length()).ok();
        group.timeouts.drain = drain;
        group
    };
    let drain = options.limits.drain_timeout;
    options.models.iter().zip(models).map(|pair| group(pair, drain)).collect()
}

async fn listen(
    api: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await.map_err(|source| Error::Bind { api, address, source })
}

async fn open_keys(options: &Options) -> Result<KeyStore, Error> {
    let path = &options.data_dir;
    std::fs::create_dir_all(path)
        .map_err(|source| Error::DataDir { path: path.clone(), source })?;
    let keys = KeyStore::open(&options.database_url()).await?;
    if let Some(key) = &options.bootstrap_key {
        keys.insert_plaintext(BOOTSTRAP_KEY_NAME, key.expose()).await?;
    }
    Ok(keys)
}
