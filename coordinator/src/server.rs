//! Starts and stops everything: listeners, database, tokenizers, model groups.
//!
//! What a standby does is what a leader does, too: HTTP, whose routes refuse, and metrics. The rest begins when it leads. Until
//! then the gRPC port is taken and not listened on: workers that know several addresses try the next one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use metrics::gauge;
use switchyard_moe::ids::ModelId;
use switchyard_tls::{Role, Security, Usage};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::auth::ledger;
use crate::auth::{Accounts, KeyStore};
use crate::batches::Batches;
use crate::chat::model::Model;
use crate::chat::usage::Chain;
use crate::chat::{Chat, Served};
use crate::cluster::{self, Farewell, ModelGroupOptions};
use crate::election::{self, Election, Standing};
use crate::engine::observe;
use crate::engine::status::GroupStatus;
use crate::http;
use crate::http::admin::Admin;
use crate::http::models::Catalog;
use crate::listener::{Api, Listener};
use crate::metric_definitions as names;
use crate::options::{ModelOptions, Options};

mod error;
mod campaign;
mod leader;
mod port;
#[cfg(test)]
mod tests;

use campaign::Campaign;
pub use error::Error;
use leader::Leader;
use port::{Port, listen};

/// Name under which the bootstrap key is listed.
const BOOTSTRAP_KEY_NAME: &str = "bootstrap";
/// After the last answer is complete: how long clients get to read it, and workers to go.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the recorder of metrics tidies up, and gauges of the groups are set.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Builds coordinators.
#[derive(Debug)]
pub struct Coordinator;

/// A coordinator whose ports are taken, database open and tokenizers loaded; nothing is served yet.
#[derive(Debug)]
pub struct Bound {
    http: Listener,
    http_addr: SocketAddr,
    grpc: Port,
    grpc_addr: SocketAddr,
    admin: Option<(Listener, SocketAddr)>,
    cluster: cluster::Service,
    ledger: ledger::Writer,
    context: http::Context,
    election: Box<dyn Election>,
    standing: watch::Sender<Standing>,
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
        let (http_tls, cluster_tls) = open_tls(&options).await?;
        let limits = &options.connections;
        let (http, http_addr) = listen(Api::Http, options.http, &http_tls, limits).await?;
        let (grpc, grpc_addr) = if options.election.has_others() {
            Port::reserve(Api::Grpc, options.grpc, &cluster_tls, limits)?
        } else {
            Port::open(Api::Grpc, options.grpc, &cluster_tls, limits).await?
        };
        let election = election::open(&options.election).await?;
        let admin = match options.admin.as_ref().and_then(|admin| admin.listen) {
            Some(address) => Some(listen(Api::Admin, address, &http_tls, limits).await?),
            None => None,
        };
        let keys = open_keys(&options).await?;
        let batches = Batches::open(&options, &keys)?;
        let (cluster, groups) =
            cluster::Service::new(group_options(&options, &models), &cluster_tls)?;
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
            metrics_aliases: options.metrics_aliases,
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
                leader.spawn(&mut tasks, &cluster_done)?;
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
    http: Listener,
    admin: Option<(Listener, SocketAddr)>,
    context: &http::Context,
) {
    let draining = &context.draining;
    serve(tasks, http, http::router(context.clone()), draining);
    if let (Some((listener, _)), Some(admin)) = (admin, context.admin.clone()) {
        serve(tasks, listener, http::admin::router(admin), draining);
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

/// Serves a router on a listener until `stop` is cancelled and all answers are out.
fn serve(tasks: &mut Tasks, listener: Listener, router: Router, stop: &CancellationToken) {
    let serving = listener.serve(router, stop.clone());
    tasks.spawn(async move {
        serving.await;
        Ok(())
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

/// Certificates of the HTTP API, and of this process in its cluster.
async fn open_tls(options: &Options) -> Result<(Security, Security), Error> {
    let http = Security::open(options.tls.http.as_ref(), Usage::Http);
    let usage = Usage::Cluster(Role::Coordinator);
    let cluster = Security::open(options.tls.cluster.as_ref(), usage);
    Ok((http.await.map_err(Error::Tls)?, cluster.await.map_err(Error::Tls)?))
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
