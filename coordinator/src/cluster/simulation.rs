//! A cluster of simulated workers under paused time. Every delay comes from a seed, so one seed has one history.
//!
//! A simulated worker keeps the contract of the `Worker` service and panics when the coordinator breaks it. Its model is a
//! hash of all tokens so far: any schedule, on any number of ranks, must give the same answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::ModelId;
use switchyard_proto::cluster::cluster_server::Cluster as _;
use switchyard_proto::cluster::register_event::Event as Lease;
use switchyard_proto::cluster::{Device, RegisterRequest};
use switchyard_proto::worker::load_progress::Phase as LoadPhase;
use switchyard_proto::worker::{
    DescribeResponse, FormGroupRequest, LoadProgress, LoadRequest, RankBatch, StepOutput,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Request;

use super::link::{Connector, Error, Messages, RankLink};
use super::{Groups, ModelGroupOptions, Registrar, Service};
use crate::engine::Handle;
use crate::engine::request::{GenerateRequest, Priority, SamplingParams};

mod rank;

use rank::SimRank;
pub(crate) use rank::answer;

/// How long a simulated rank waits for its peers in a step.
const COLLECTIVE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a silent connection lives, as the real one's keep-alive has it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A small model's configuration; the simulation uses only its counts.
pub(crate) fn config() -> Arc<ModelConfig> {
    let text = include_str!("../../../fixtures/micro/q/config.json");
    Arc::new(ModelConfig::from_json(text).unwrap())
}

/// The one model group of most tests.
pub(crate) fn group_options() -> ModelGroupOptions {
    ModelGroupOptions::new(ModelId::new("sim"), config())
}

/// A request whose answer is [`answer`].
pub(crate) fn request(prompt: Vec<u32>, max_tokens: u32, stops: Vec<u32>) -> GenerateRequest {
    let sampling = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        seed: 3,
        choice: 0,
        logprobs: false,
        num_top_logprobs: 0,
        ..SamplingParams::default()
    };
    GenerateRequest {
        prompt,
        sampling,
        max_tokens,
        stop_token_ids: stops,
        constraint: None,
        priority: Priority::Interactive,
    }
}

/// A running coordinator side with simulated workers.
#[derive(Debug)]
pub(crate) struct Simulation {
    pub(crate) handle: Handle,
    pub(crate) registrar: Registrar,
    pub(crate) network: Arc<Network>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) cut: CancellationToken,
    pub(crate) service: tokio::task::JoinHandle<Result<(), super::Error>>,
}

/// Where simulated workers are found by their addresses.
#[derive(Debug)]
pub(crate) struct Network {
    seed: u64,
    workers: Mutex<BTreeMap<String, Arc<SimWorker>>>,
    /// For each epoch, the step that each rank has reached.
    epochs: Mutex<BTreeMap<u64, watch::Sender<Vec<u64>>>>,
}

/// One simulated worker process.
#[derive(Debug)]
pub(crate) struct SimWorker {
    network: Arc<Network>,
    pub(crate) info: RegisterRequest,
    /// The process is gone.
    dead: CancellationToken,
    /// The process is there, but does nothing any more.
    hung: CancellationToken,
    rng: Mutex<StdRng>,
    /// Factor on its delays.
    slowness: u64,
    /// What its loads end with instead of success.
    load_fault: Option<String>,
    state: Mutex<WorkerState>,
    /// How its lease ended, if not by its own death.
    pub(crate) lease_end: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct WorkerState {
    /// Rank and world size of the experts held.
    loaded: Option<(u32, u32)>,
    limits: switchyard_proto::worker::CacheLimits,
    epoch: u64,
    rank: usize,
    /// Addresses of the epoch's ranks.
    peers: Vec<String>,
}

/// How to start a worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerOptions {
    pub(crate) world_size: u32,
    pub(crate) device_kind: &'static str,
    pub(crate) memory_bytes: u64,
    pub(crate) slowness: u64,
    pub(crate) load_fault: Option<String>,
}

impl WorkerOptions {
    pub(crate) fn new(world_size: u32) -> Self {
        Self { world_size, device_kind: "cpu", memory_bytes: 0, slowness: 1, load_fault: None }
    }
}

impl Simulation {
    pub(crate) fn start(seed: u64, options: ModelGroupOptions) -> Self {
        let network =
            Arc::new(Network { seed, workers: Mutex::default(), epochs: Mutex::default() });
        let connector: Arc<dyn Connector> = Arc::clone(&network) as _;
        let model = options.model.clone();
        let (service, groups): (Service, Groups) =
            Service::with_connector(vec![options], &connector).unwrap();
        let handle = groups.get(&model).unwrap().clone();
        let registrar = service.registrar();
        let (shutdown, cut) = (CancellationToken::new(), service.cut());
        let service = tokio::spawn(service.run(shutdown.clone()));
        Self { handle, registrar, network, shutdown, cut, service }
    }

    /// Starts a worker process and registers it.
    pub(crate) async fn start_worker(&self, options: WorkerOptions) -> Arc<SimWorker> {
        let worker = self.network.add(options);
        let lease = self.registrar.register(Request::new(worker.info.clone())).await.unwrap();
        let held = Arc::clone(&worker);
        tokio::spawn(async move { held.hold(lease.into_inner()).await });
        worker
    }

    /// Waits until the group's phase satisfies `wanted`.
    pub(crate) async fn reaches(&self, wanted: impl Fn(&crate::engine::status::Phase) -> bool) {
        let mut status = self.handle.watch();
        let waited =
            timeout(Duration::from_secs(3_600), status.wait_for(|status| wanted(&status.phase)));
        if !waited.await.is_ok_and(|status| status.is_ok()) {
            let status = self.handle.status();
            panic!("the group stays in {status:?}");
        }
    }

    /// Waits until steps run.
    pub(crate) async fn is_ready(&self) {
        self.reaches(|phase| *phase == crate::engine::status::Phase::Ready).await;
    }
}

impl Network {
    fn add(self: &Arc<Self>, options: WorkerOptions) -> Arc<SimWorker> {
        let mut workers = self.workers.lock().unwrap();
        let number = workers.len() as u64 + 1;
        let info = RegisterRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: "sim".to_owned(),
            checkpoint_fingerprint: "f00d".to_owned(),
            numerics: "official".to_owned(),
            control_address: format!("worker-{number}:1"),
            data_address: format!("worker-{number}:2"),
            device: Some(Device {
                kind: options.device_kind.to_owned(),
                memory_bytes: options.memory_bytes,
                ..Device::default()
            }),
            pid: 100 + number as u32,
            world_size: options.world_size,
        };
        let worker = Arc::new(SimWorker {
            network: Arc::clone(self),
            dead: CancellationToken::new(),
            hung: CancellationToken::new(),
            rng: Mutex::new(StdRng::seed_from_u64(self.seed.wrapping_mul(1_009) + number)),
            slowness: options.slowness,
            load_fault: options.load_fault,
            state: Mutex::default(),
            lease_end: watch::Sender::new(None),
            info,
        });
        workers.insert(worker.info.control_address.clone(), Arc::clone(&worker));
        worker
    }

    fn find(&self, address: &str) -> Arc<SimWorker> {
        Arc::clone(&self.workers.lock().unwrap()[address])
    }

    /// The worker behind a data address.
    fn peer(&self, data_address: &str) -> Arc<SimWorker> {
        self.find(&data_address.replace(":2", ":1"))
    }

    fn progress(&self, epoch: u64, world_size: usize) -> watch::Sender<Vec<u64>> {
        let mut epochs = self.epochs.lock().unwrap();
        epochs.entry(epoch).or_insert_with(|| watch::Sender::new(vec![0; world_size])).clone()
    }
}

impl SimWorker {
    /// `kill -9`.
    pub(crate) fn kill(&self) {
        self.dead.cancel();
    }

    /// Stops doing anything, connections open.
    pub(crate) fn hang(&self) {
        self.hung.cancel();
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.dead.is_cancelled() && !self.hung.is_cancelled()
    }

    async fn hold(
        &self,
        mut lease: <Registrar as switchyard_proto::cluster::cluster_server::Cluster>::RegisterStream,
    ) {
        loop {
            let event = tokio::select! {
                () = self.dead.cancelled() => return,
                event = lease.next() => event,
            };
            let end = match event {
                Some(Ok(event)) => match event.event.unwrap() {
                    Lease::Registered(_) => continue,
                    Lease::Drain(drain) => drain.reason,
                },
                Some(Err(status)) => status.message().to_owned(),
                None => "closed".to_owned(),
            };
            self.lease_end.send_replace(Some(end));
            self.kill();
            return;
        }
    }

    /// Lets time pass as long as an action of about `typical_ms` takes; fails when the process dies meanwhile.
    async fn work(&self, typical_ms: u64) -> Result<(), Error> {
        let time = self.rng.lock().unwrap().random_range(0..=2 * typical_ms) * self.slowness;
        tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(Error::Lost("connection reset".to_owned())),
            () = async { self.hung.cancelled().then(|()| sleep(KEEP_ALIVE)).await } => {
                Err(Error::Lost("keep-alive timed out".to_owned()))
            }
            () = sleep(Duration::from_millis(time)), if !self.hung.is_cancelled() => Ok(()),
        }
    }

    /// Waits until all ranks of the epoch have reached `step`, as an all-to-all does.
    async fn meet(&self, step: u64) -> Result<(), Error> {
        let (rank, epoch, peers) = {
            let state = self.state.lock().unwrap();
            (state.rank, state.epoch, state.peers.clone())
        };
        let progress = self.network.progress(epoch, peers.len());
        progress.send_modify(|reached| reached[rank] = step);
        let peers: Vec<Arc<SimWorker>> = peers.iter().map(|peer| self.network.peer(peer)).collect();
        let deaths = peers.iter().map(|peer| peer.dead.cancelled().boxed());
        let mut reached = progress.subscribe();
        let met = timeout(COLLECTIVE_DEADLINE, reached.wait_for(|r| r.iter().all(|&s| s >= step)));
        tokio::select! {
            biased;
            ((), culprit, _) = futures::future::select_all(deaths) => {
                if culprit == rank {
                    return Err(Error::Lost("connection reset".to_owned()));
                }
                Err(Error::Failed(format!(
                    "rank {culprit} stopped before step {step} layer 0 dispatch; rank {rank} waited for it"
                )))
            }
            met = met => match met {
                Ok(_) => Ok(()),
                Err(_) => {
                    let culprit = progress.borrow().iter().position(|&s| s < step).unwrap();
                    Err(Error::Failed(format!(
                        "rank {culprit} did not reach step {step} layer 0 dispatch; rank {rank} waited for it"
                    )))
                }
            },
        }
    }
}

impl Connector for Network {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn RankLink>, Error>> {
        let worker = self.find(address);
        Box::pin(async move {
            worker.work(2).await?;
            Ok(Box::new(worker) as Box<dyn RankLink>)
        })
    }
}

impl RankLink for Arc<SimWorker> {
    fn describe(&self) -> BoxFuture<'_, Result<DescribeResponse, Error>> {
        Box::pin(async {
            self.work(1).await?;
            let epoch = self.state.lock().unwrap().epoch;
            Ok(DescribeResponse { epoch, ..DescribeResponse::default() })
        })
    }

    fn load(&self, request: LoadRequest) -> BoxFuture<'_, Result<Messages<LoadProgress>, Error>> {
        let worker = Arc::clone(self);
        Box::pin(async move {
            worker.state.lock().unwrap().loaded = None;
            let stream = async_stream::stream! {
                for done in 0..4 {
                    if let Err(error) = worker.work(100).await {
                        yield Err(error);
                        return;
                    }
                    yield Ok(LoadProgress {
                        phase: LoadPhase::Weights.into(),
                        bytes_done: done,
                        bytes_total: 4,
                        ..LoadProgress::default()
                    });
                }
                if let Some(fault) = &worker.load_fault {
                    yield Err(Error::Failed(fault.clone()));
                    return;
                }
                {
                    let mut state = worker.state.lock().unwrap();
                    state.loaded = Some((request.rank, request.world_size));
                    state.limits = request.limits.unwrap();
                }
                yield Ok(LoadProgress {
                    phase: LoadPhase::Ready.into(),
                    bytes_done: 4,
                    bytes_total: 4,
                    ..LoadProgress::default()
                });
            };
            Ok(stream.boxed())
        })
    }

    fn form_group(&self, request: FormGroupRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.work(5).await?;
            let world_size = request.peers.len() as u32;
            {
                let mut state = self.state.lock().unwrap();
                assert_eq!(state.loaded, Some((request.rank, world_size)), "wrong experts loaded");
                assert!(request.epoch > state.epoch, "epoch {} again", request.epoch);
                state.epoch = request.epoch;
                state.rank = request.rank as usize;
                state.peers = request.peers.into_iter().map(|peer| peer.data_address).collect();
            }
            self.network.progress(request.epoch, world_size as usize);
            Ok(())
        })
    }

    fn execute(
        &self,
        mut batches: mpsc::Receiver<RankBatch>,
    ) -> BoxFuture<'_, Result<Messages<StepOutput>, Error>> {
        let worker = Arc::clone(self);
        Box::pin(async move {
            let (epoch, limits) = {
                let state = worker.state.lock().unwrap();
                (state.epoch, state.limits)
            };
            let stream = async_stream::stream! {
                let mut rank = SimRank::default();
                let mut step = 0;
                while let Some(batch) = batches.recv().await {
                    assert_eq!((batch.epoch, batch.step), (epoch, step + 1));
                    step = batch.step;
                    let computed = async {
                        worker.work(4).await?;
                        worker.meet(step).await
                    };
                    if let Err(error) = computed.await {
                        yield Err(error);
                        return;
                    }
                    yield Ok(rank.run(batch, &limits));
                }
            };
            Ok(stream.boxed())
        })
    }
}
