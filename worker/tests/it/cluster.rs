//! Workers as the coordinator sees them: real gRPC and a real mesh on the loopback interface. Each worker lives in a
//! runtime of its own, so that it can be killed as a process is.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use futures::stream::BoxStream;
use switchyard_moe::ids::{ModelId, StepId};
use switchyard_moe::placement::Placement;
use switchyard_proto::cluster::cluster_server::{Cluster, ClusterServer};
use switchyard_proto::cluster::register_event::Event;
use switchyard_proto::cluster::{Drain, RegisterEvent, RegisterRequest, Registered};
use switchyard_proto::worker::load_progress::Phase as LoadPhase;
use switchyard_proto::worker::sequence_chunk::Tokens;
use switchyard_proto::worker::worker_client::WorkerClient;
use switchyard_proto::worker::{self as proto, RankBatch, StepOutput};
use switchyard_worker::backend::Numerics;
use switchyard_worker::backend::device::Device;
use switchyard_worker::collective::{AllToAll, Direction, Phase};
use switchyard_worker::model::{self, Progress};
use switchyard_worker::rank::{Plan, StepRunner};
use switchyard_worker::server::{Error, Shape};
use switchyard_worker::step::{SampledToken, StepBatch, StepResult};
use switchyard_worker::{Options, Worker};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) const NUM_LAYERS: usize = 2;
pub(crate) const NUM_EXPERTS: usize = 6;

/// A chunk of this sequence blocks its rank until the worker is killed.
pub(crate) const HANGS: u64 = 666;

// === the stand-in for the model ===

/// Exchanges its rank number in every layer and checks what comes back; samples `1000 * sequence + position`.
#[derive(Debug)]
pub(crate) struct Fake {
    plan: Option<Plan>,
    /// Counts the steps that have begun.
    begun: Arc<AtomicU64>,
    killed: std_mpsc::Receiver<()>,
}

impl StepRunner for Fake {
    fn load(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), model::Error> {
        progress(Progress { bytes_done: 1000, bytes_total: 1000 });
        self.plan = Some(plan.clone());
        Ok(())
    }

    fn clear(&mut self) {}

    fn num_sequences(&self) -> usize {
        0
    }

    fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<StepResult, model::Error> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let plan = self.plan.as_ref().unwrap();
        assert_eq!(all_to_all.rank(), plan.rank);
        assert_eq!(all_to_all.world_size(), plan.placement.world_size());
        if batch.chunks.iter().any(|chunk| chunk.sequence.0 == HANGS) {
            let _ = self.killed.recv();
            return Err(model::Error::Placement("killed".to_owned()));
        }
        let outbound = vec![vec![all_to_all.rank().0 as u8; 100]; all_to_all.world_size()];
        let mut inbound = outbound.clone();
        for layer in 0..NUM_LAYERS as u32 {
            for direction in [Direction::Dispatch, Direction::Combine] {
                all_to_all
                    .exchange(Phase { step, layer, direction }, &outbound, &mut inbound)
                    .map_err(|source| model::Error::Collective { step, source })?;
                for (from, rows) in inbound.iter().enumerate() {
                    assert_eq!(*rows, vec![from as u8; 100]);
                }
            }
        }
        let samples = batch.chunks.iter().map(|chunk| SampledToken {
            sequence: chunk.sequence,
            position: chunk.first_position,
            token_id: 1000 * chunk.sequence.0 as u32 + chunk.first_position,
            logprob: 0.0,
            top_logprobs: Vec::new(),
        });
        Ok(StepResult { samples: samples.collect(), ..StepResult::default() })
    }
}

// === the stand-in for the coordinator ===

/// Registrations, as they come in. Dropping the lease ends it.
type Lease = mpsc::Sender<Result<RegisterEvent, Status>>;

struct Registry {
    leases: mpsc::Sender<(RegisterRequest, Lease)>,
    refusal: Option<Status>,
}

#[tonic::async_trait]
impl Cluster for Registry {
    type RegisterStream = BoxStream<'static, Result<RegisterEvent, Status>>;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let (lease, events) = mpsc::channel(4);
        let registered = Event::Registered(Registered { worker_id: 1 });
        lease.send(Ok(RegisterEvent { event: Some(registered) })).await.unwrap();
        self.leases.send((request.into_inner(), lease)).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }
}

/// A coordinator of which there is only the registration.
pub(crate) struct Coordinator {
    pub(crate) address: SocketAddr,
    pub(crate) registrations: mpsc::Receiver<(RegisterRequest, Lease)>,
    runtime: Option<Runtime>,
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), None).await
    }

    async fn start_on(address: SocketAddr, refusal: Option<Status>) -> Self {
        let runtime = small_runtime();
        let (leases, registrations) = mpsc::channel(16);
        let (bound, address_bound) = oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            tonic::transport::Server::builder()
                .add_service(ClusterServer::new(Registry { leases, refusal }))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        let address = address_bound.await.unwrap();
        Self { address, registrations, runtime: Some(runtime) }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

// === workers ===

fn small_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

pub(crate) fn options(coordinator: SocketAddr, world_size: usize) -> Options {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Options {
        device: Device::Cpu,
        coordinator: format!("http://{coordinator}").parse().unwrap(),
        model: ModelId::new("fake"),
        model_dir: PathBuf::from("nowhere"),
        numerics: Numerics::Exact,
        world_size: NonZeroUsize::new(world_size).unwrap(),
        control_addr: any,
        data_addr: any,
        advertise_host: None,
        tls: None,
        num_threads: NonZeroUsize::MIN,
        exchange_deadline: Duration::from_secs(30),
    }
}

pub(crate) fn shape() -> Shape {
    Shape { num_layers: NUM_LAYERS, num_experts: NUM_EXPERTS, fingerprint: "f".to_owned() }
}

/// A worker and the client that drives it.
pub(crate) struct Remote {
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) data_address: String,
    pub(crate) shutdown: CancellationToken,
    ended: oneshot::Receiver<Result<(), Error>>,
    runtime: Option<Runtime>,
    begun: Arc<AtomicU64>,
    kill: Option<std_mpsc::SyncSender<()>>,
}

impl Remote {
    pub(crate) async fn start(options: Options) -> Self {
        let (kill, killed) = std_mpsc::sync_channel(0);
        let begun = Arc::new(AtomicU64::new(0));
        let fake = Fake { plan: None, begun: Arc::clone(&begun), killed };
        let bind = async move { Worker::bind_with(options, shape(), fake).await };
        let mut remote = Self::start_with(bind).await;
        remote.begun = begun;
        remote.kill = Some(kill);
        remote
    }

    pub(crate) async fn start_with(
        bind: impl Future<Output = Result<Worker, Error>> + Send + 'static,
    ) -> Self {
        let runtime = small_runtime();
        let shutdown = CancellationToken::new();
        let (bound, addresses) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let stop = shutdown.clone();
        runtime.spawn(async move {
            let worker = bind.await.unwrap();
            let addresses = (worker.control_address().to_owned(), worker.data_address().to_owned());
            bound.send(addresses).unwrap();
            let _ = end.send(worker.run(stop).await);
        });
        let (control, data_address) = addresses.await.unwrap();
        let client = WorkerClient::connect(format!("http://{control}")).await.unwrap();
        let begun = Arc::default();
        Self { client, data_address, shutdown, ended, runtime: Some(runtime), begun, kill: None }
    }

    /// Ends the worker as SIGKILL does: nothing of it runs any more, its connections break.
    pub(crate) fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.kill = None;
    }

    /// Waits until the fake has begun so many steps.
    pub(crate) async fn wait_for_steps(&self, count: u64) {
        while self.begun.load(Ordering::Relaxed) < count {
            tokio::task::yield_now().await;
        }
    }

    /// Waits for the end of the worker.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        (&mut self.ended).await.unwrap()
    }

    /// Opens the stream of steps; batches go into the sender.
    pub(crate) async fn execute(&mut self) -> Result<Steps, Status> {
        let (batches, receiver) = mpsc::channel(4);
        let outputs = self.client.execute(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Steps { batches, outputs })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.kill = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) struct Steps {
    pub(crate) batches: mpsc::Sender<RankBatch>,
    pub(crate) outputs: Streaming<StepOutput>,
}

impl Steps {
    pub(crate) async fn send(&self, batch: RankBatch) {
        self.batches.send(batch).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<StepOutput, Status> {
        self.outputs.next().await.unwrap()
    }
}

pub(crate) async fn start(coordinator: &Coordinator, world_size: usize) -> Vec<Remote> {
    let options = options(coordinator.address, world_size);
    join_all((0..world_size).map(|_| Remote::start(options.clone()))).await
}

pub(crate) fn placement(
    num_layers: usize,
    num_experts: usize,
    world_size: usize,
) -> proto::Placement {
    let placement = Placement::contiguous(num_layers, num_experts, world_size);
    let layers = placement.layers().iter().map(|layer| proto::LayerPlacement {
        slots_per_rank: layer.slots_per_rank() as u32,
        physical_to_logical: layer
            .physical_to_logical()
            .iter()
            .map(|expert| expert.map_or(-1, |expert| expert.0 as i32))
            .collect(),
    });
    proto::Placement { layers: layers.collect() }
}

/// Loads all workers, in rank order, and returns the last progress of each.
pub(crate) async fn load(
    workers: &mut [Remote],
    placement: &proto::Placement,
) -> Result<Vec<proto::LoadProgress>, Status> {
    let world_size = workers.len() as u32;
    let loads = workers.iter_mut().zip(0..).map(|(worker, rank)| async move {
        let request = proto::LoadRequest {
            rank,
            world_size,
            placement: Some(placement.clone()),
            limits: Some(proto::CacheLimits {
                num_blocks: 16,
                max_num_seqs: 4,
                max_num_batched_tokens: 64,
                max_model_len: 256,
            }),
        };
        let mut progress = worker.client.load(request).await?.into_inner();
        let mut last = None;
        while let Some(message) = progress.next().await {
            last = Some(message?);
        }
        Ok(last.unwrap())
    });
    try_join_all(loads).await
}

pub(crate) async fn form(
    workers: &mut [Remote],
    placement: &proto::Placement,
    epoch: u64,
) -> Result<(), Status> {
    let peers: Vec<_> = workers
        .iter()
        .zip(0..)
        .map(|(worker, rank)| proto::Peer { rank, data_address: worker.data_address.clone() })
        .collect();
    let forms = workers.iter_mut().zip(0..).map(|(worker, rank)| {
        worker.client.form_group(proto::FormGroupRequest {
            epoch,
            rank,
            peers: peers.clone(),
            placement: Some(placement.clone()),
            deadline_ms: 20_000,
        })
    });
    try_join_all(forms).await.map(drop)
}

/// Loads and forms a group of fakes, and opens its streams.
pub(crate) async fn serve(workers: &mut [Remote], epoch: u64) -> Vec<Steps> {
    let placement = placement(NUM_LAYERS, NUM_EXPERTS, workers.len());
    load(workers, &placement).await.unwrap();
    form(workers, &placement, epoch).await.unwrap();
    try_join_all(workers.iter_mut().map(Remote::execute)).await.unwrap()
}

/// A batch in which `sequences` decode at position `step`.
pub(crate) fn batch(epoch: u64, step: u64, sequences: &[u64]) -> RankBatch {
    let chunks = sequences.iter().map(|&sequence_id| proto::SequenceChunk {
        sequence_id,
        first_position: step as u32,
        tokens: Some(Tokens::LastSample(proto::LastSample {})),
        new_blocks: Vec::new(),
        start: None,
        samples: false,
    });
    RankBatch {
        epoch,
        step,
        chunks: chunks.collect(),
        released_sequence_ids: Vec::new(),
        traces: Vec::new(),
    }
}

pub(crate) async fn run_steps(steps: &mut [Steps], epoch: u64, count: u64) {
    for step in 1..=count {
        for rank in steps.iter() {
            rank.send(batch(epoch, step, &[7])).await;
        }
        for rank in steps.iter_mut() {
            assert_eq!(rank.next().await.unwrap().step, step);
        }
    }
}

pub(crate) async fn expect_refusal(result: Result<(), Status>, code: Code, message: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

pub(crate) async fn refusing(status: Status) -> Coordinator {
    Coordinator::start_on("127.0.0.1:0".parse().unwrap(), Some(status)).await
}

/// The coordinator dies and another takes its address.
pub(crate) async fn restart(coordinator: Coordinator) -> Coordinator {
    let address = coordinator.address;
    drop(coordinator);
    loop {
        // The old one's listener is closed when its runtime gets to it.
        match std::net::TcpListener::bind(address) {
            Ok(free) => break drop(free),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    Coordinator::start_on(address, None).await
}

pub(crate) fn drain() -> RegisterEvent {
    RegisterEvent { event: Some(Event::Drain(Drain { reason: "the test is over".to_owned() })) }
}

pub(crate) fn is_ready(progress: &proto::LoadProgress) -> bool {
    progress.phase() == LoadPhase::Ready
}
