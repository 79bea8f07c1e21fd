//! Starts and stops everything: listeners, database, tokenizers, model groups.
//!
//! What a standby does is what a leader does, too: HTTP, whose routes refuse, and metrics. The rest begins when it leads. Until
//! then the gRPC port is taken and not listened on: workers that know several addresses try the next one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt as _;
use metrics::gauge;
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
use crate::cluster::{self, Farewell, ModelGroupOptions};
use crate::election::{self, Election, Standing};
use crate::engine::observe;
use crate::engine::status::GroupStatus;
use crate::http::admin::Admin;
use crate::http::models::Catalog;
use crate::metric_definitions as names;
use crate::options::{ModelOptions, Options};
use crate::{files, grpc, http};

mod campaign;
mod port;
#[cfg(test)]
mod tests;

use campaign::Campaign;
use port::{Port, listen};

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
    grpc: Port,
    grpc_addr: SocketAddr,
    admin: Option<(TcpListener, SocketAddr)>,
    cluster: cluster::Service,
    ledger: ledger::Writer,
    context: http::Context,
    election: Box<dyn Election>,
    standing: watch::Sender<Standing>,
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
    /// The election cannot be held.
    #[error("the election of a leader cannot be held")]
    Election(#[from] election::Error),
    /// Another coordinator leads, or may: this one has stopped and can be started again.
    #[error("this coordinator leads no longer: {0}")]
    LostLead(String),
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

/// What only a leader does, before it is started.
struct Leader {
    grpc: Port,
    cluster: cluster::Service,
    context: http::Context,
    /// Says that the cluster has ended; also when it never began.
    done: DropGuard,
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
        let (grpc, grpc_addr) = if options.election.has_others() {
            Port::take("gRPC", options.grpc)?
        } else {
            Port::listen("gRPC", options.grpc).await?
        };
        let election = election::open(&options.election).await?;
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
        let chat = Arc::new(chat);
        let limits = Arc::new(options.limits);
        let (accounts, ledger) = Accounts::new(keys.clone());
        let (standing, watched) = watch::channel(Standing::StandsBy { leader: None });
        let admin_api = options
            .admin
            .map(|admin| Admin::new(keys, Arc::clone(&chat), &admin, Arc::clone(&limits)));
        let context = http::Context {
            chat,
            accounts,
            admin: admin_api,
            responses: Arc::default(),
            batches,
            limits,
            catalog: Arc::new(Catalog::new(&options.models)),
            playground: options.playground,
            metrics: options.metrics,
            standing: watched,
            draining: CancellationToken::new(),
        };
        Ok(Bound {
            http,
            http_addr,
            grpc,
            grpc_addr,
            admin,
            cluster,
            ledger,
            context,
            election,
            standing,
        })
    }
}

// === impl Bound ===

impl Bound {
    /// Where the HTTP API listens.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where gRPC listens, once this coordinator leads.
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

    /// Stands by until this coordinator leads, and then serves, until `shutdown` is cancelled; then drains: no new requests,
    /// running answers get their time to finish, workers are let go, and only then another may lead.
    ///
    /// # Errors
    /// A server or a model group failed, or another coordinator leads; everything was stopped.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { http, grpc, admin, cluster, ledger, context, election, standing, .. } = self;
        let draining = context.draining.clone();
        let mut tasks = JoinSet::new();
        let ledger = LedgerTask::spawn(ledger);
        spawn_front(&mut tasks, http, admin, &context);
        let mut campaign = Campaign::begin(election, standing);
        let (cut, cluster_done) = (cluster.cut(), CancellationToken::new());
        let leader = Leader { grpc, cluster, context, done: cluster_done.clone().drop_guard() };
        let ended = async {
            if until(&shutdown, &mut tasks, campaign.won()).await?.is_some() {
                leader.spawn(&mut tasks, cluster_done.clone())?;
                until(&shutdown, &mut tasks, campaign.lost()).await?;
            }
            Ok(())
        };
        let ended = ended.await;
        tracing::info!("draining");
        draining.cancel();
        let drained = tokio::select! {
            drained = drain(tasks, &cluster_done) => drained,
            never = cut_when_lost(&mut campaign, &cut) => match never {},
        };
        // Only now nobody uses anything any more.
        let recorded = ledger.finish().await;
        ended.and(drained).and(recorded).and(campaign.end().await)
    }
}

// === impl Leader ===

impl Leader {
    /// Opens the gRPC port and starts what only a leader does. `done` is cancelled when the cluster has ended.
    fn spawn(self, tasks: &mut Tasks, cluster_done: CancellationToken) -> Result<(), Error> {
        let Self { grpc, cluster, context, done } = self;
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
        let grpc_stop = cluster_done.cancelled_owned();
        let incoming = TcpIncoming::from(grpc.open()?).with_nodelay(Some(true));
        tasks.spawn(async move {
            let served = grpc_server.serve_with_incoming_shutdown(incoming, grpc_stop).await;
            served.map_err(|source| Error::Serve { api: "gRPC", source: source.into() })
        });

        let stop = draining.clone();
        tasks.spawn(async move {
            let _done = done;
            Ok(cluster.run(stop).await?)
        });
        let runner = http::batches::runner(&context);
        let stop = draining.clone();
        tasks.spawn(async move {
            runner.run(stop).await;
            Ok(())
        });
        tasks.spawn(async move {
            grpc::health::follow(context.chat, health_reporter, draining).await;
            Ok(())
        });
        Ok(())
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

/// Starts what leader and standby have in common: HTTP, metrics, and the end of responses that nobody waits for.
fn spawn_front(
    tasks: &mut Tasks,
    http: TcpListener,
    admin: Option<(TcpListener, SocketAddr)>,
    context: &http::Context,
) {
    let draining = &context.draining;
    serve_http(tasks, ("HTTP", http), http::router(context.clone()), draining);
    if let (Some((listener, _)), Some(admin)) = (admin, context.admin.clone()) {
        serve_http(tasks, ("admin", listener), http::admin::router(admin), draining);
    }
    let (stop, standing) = (draining.clone(), context.standing.clone());
    let metrics = context.metrics.clone();
    let statuses = statuses(&context.chat);
    tasks.spawn(async move {
        let mut upkeep = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
        while stop.run_until_cancelled(upkeep.tick()).await.is_some() {
            metrics.run_upkeep();
            let leads = standing.borrow().leads();
            gauge!(names::COORDINATOR_LEADS).set(f64::from(u8::from(leads)));
            // The models' state is the leader's to tell.
            for (model, status) in statuses.iter().filter(|_| leads) {
                observe::record(model, &status.borrow(), Instant::now());
            }
        }
        Ok(())
    });
    let (stop, responses) = (draining.clone(), Arc::clone(&context.responses));
    tasks.spawn(async move {
        stop.cancelled().await;
        responses.drained().await;
        Ok(())
    });
}

/// What `event` comes to. `None`: the server is told to stop before.
async fn until<T>(
    shutdown: &CancellationToken,
    tasks: &mut Tasks,
    event: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, Error> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(None),
        ended = early_end(tasks) => ended.map(|()| None),
        event = event => event.map(Some),
    }
}

/// Ends the cluster at once when the lease is lost, before another coordinator may drive the workers.
async fn cut_when_lost(campaign: &mut Campaign, cut: &CancellationToken) -> Infallible {
    let Err(_) = campaign.lost().await;
    cut.cancel();
    std::future::pending().await
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
    let farewell = if options.election.has_others() { Farewell::Stay } else { Farewell::Exit };
    let group = |(options, model): (&ModelOptions, &Model), drain| {
        let mut group =
            ModelGroupOptions::new(ModelId::new(model.id()), Arc::new(model.config().clone()));
        group.numerics = options.numerics;
        group.cache = options.cache;
        group.cache.max_model_len = usize::try_from(model.context_length()).ok();
        group.timeouts.drain = drain;
        group.farewell = farewell;
        group
    };
    let drain = options.limits.drain_timeout;
    options.models.iter().zip(models).map(|pair| group(pair, drain)).collect()
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
