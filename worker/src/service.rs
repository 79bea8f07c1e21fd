//! The gRPC service by which the coordinator drives this worker.
//!
//! - [`wire`]: messages into the types of this crate and back, each checked once.
//! - `membership`: the group that this rank is in, and how it ends.
//! - `execute`: the stream of steps.
//! - `load`: the stream of a load's progress.
//! - `status`: errors as gRPC statuses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::BoxStream;
use switchyard_moe::ids::{GroupEpoch, ModelId};
use switchyard_proto::worker::worker_server::Worker;
use switchyard_proto::worker::{
    DescribeRequest, DescribeResponse, DrainRequest, DrainResponse, FormGroupRequest,
    FormGroupResponse, LoadProgress, LoadRequest, RankBatch, StepOutput,
};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, debug_span, info, info_span};

use crate::collective::tcp::{Group, Listener};
use crate::rank::{self, Plan};

mod execute;
mod load;
mod membership;
mod status;
pub mod wire;

use membership::{Life, Membership};

/// What of the worker never changes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Version of the binary.
    pub version: String,
    /// The model that it serves.
    pub model: ModelId,
    /// Layers of the model.
    pub num_layers: usize,
    /// Routed experts of each layer.
    pub num_experts: usize,
    /// Names checkpoint and numerics towards the peers.
    pub fingerprint: [u8; 32],
    /// How long the ranks may wait for each other in one exchange.
    pub exchange_deadline: Duration,
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    listener: Listener,
    rank: rank::Handle,
    state: Mutex<State>,
}

/// What changes under way.
#[derive(Debug, Default)]
struct State {
    /// The newest epoch that this worker was told of.
    newest: GroupEpoch,
    /// Counts loads, so that one that was overtaken does not count.
    loads: u64,
    /// What the rank holds.
    loaded: Option<Arc<Plan>>,
    membership: Option<Arc<Membership>>,
    is_stopping: bool,
}

// === impl Service ===

impl Service {
    /// A service for the rank behind `rank`, whose peers connect to `listener`.
    #[must_use]
    pub fn new(identity: Identity, listener: Listener, rank: rank::Handle) -> Self {
        Self(Arc::new(Inner { identity, listener, rank, state: Mutex::default() }))
    }

    /// Ends the worker's part in its group and takes no further part in any. Steps in flight may end until the future
    /// is dropped.
    pub async fn stop(&self) {
        self.0.lock().is_stopping = true;
        self.0.drain("the worker is stopping").await;
    }

    /// Ends the worker's part in its group at once.
    pub fn abort(&self) {
        if let Some(membership) = self.0.lock().membership.take() {
            membership.end(Life::Left("the worker is stopping".to_owned()));
        }
    }
}

// === impl Inner ===

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; if it did, the state would still be a valid one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the group now: a step under way is aborted. Weights stay.
    async fn leave(&self, reason: &str) -> Result<(), Status> {
        let membership = self.lock().membership.take();
        if let Some(membership) = membership {
            info!(epoch = %membership.epoch(), reason, "leaving the group");
            membership.end(Life::Left(reason.to_owned()));
            self.rank.leave(membership.epoch()).await.map_err(|error| status::rank(&error))?;
        }
        Ok(())
    }

    /// Leaves the group once the steps in flight are over.
    async fn drain(&self, reason: &str) {
        let membership = self.lock().membership.take();
        if let Some(membership) = membership {
            info!(epoch = %membership.epoch(), reason, "draining");
            membership.end(Life::Draining(reason.to_owned()));
            // A thread that is gone has left as well.
            let _ = self.rank.leave(membership.epoch()).await;
        }
    }

    /// Takes note of `epoch`, or refuses it; also refuses a plan that is not what the rank holds.
    fn begin_forming(&self, plan: &wire::GroupPlan) -> Result<(), Status> {
        let mut state = self.lock();
        if state.is_stopping {
            return Err(Status::unavailable("the worker is stopping"));
        }
        if plan.epoch <= state.newest {
            return Err(status::stale_epoch(plan.epoch, state.newest));
        }
        let Some(loaded) = &state.loaded else {
            return Err(Status::failed_precondition("nothing is loaded; call Load first"));
        };
        if (loaded.rank, &loaded.placement) != (plan.rank, &plan.placement) {
            return Err(Status::failed_precondition(format!(
                "the worker has loaded rank {} of {}, which is not rank {} under the placement of \
                 epoch {}; call Load first",
                loaded.rank,
                loaded.placement.world_size(),
                plan.rank,
                plan.epoch
            )));
        }
        state.newest = plan.epoch;
        Ok(())
    }

    async fn form_group(&self, plan: wire::GroupPlan) -> Result<(), Status> {
        self.begin_forming(&plan)?;
        self.leave(&format!("epoch {} begins", plan.epoch)).await?;
        let group = Group {
            epoch: plan.epoch,
            rank: plan.rank,
            peers: plan.peers,
            fingerprint: self.identity.fingerprint,
            exchange_deadline: self.identity.exchange_deadline,
        };
        let joined = self.listener.join(group, plan.deadline).await;
        let collective = joined.map_err(|error| status::join(&error))?;
        let membership = Arc::new(Membership::new(&collective));
        self.rank.join(Box::new(collective)).await.map_err(|error| status::rank(&error))?;

        if self.enter(plan.epoch, membership) {
            info!(epoch = %plan.epoch, rank = %plan.rank, "joined a group");
            return Ok(());
        }
        self.rank.leave(plan.epoch).await.map_err(|error| status::rank(&error))?;
        Err(Status::aborted(format!("epoch {} was overtaken", plan.epoch)))
    }

    /// Makes `membership` the current one, unless a load, a newer epoch or the worker's end has come in between.
    fn enter(&self, epoch: GroupEpoch, membership: Arc<Membership>) -> bool {
        let mut state = self.lock();
        let is_current = state.newest == epoch && state.loaded.is_some() && !state.is_stopping;
        if is_current {
            state.membership = Some(membership);
        }
        is_current
    }

    fn describe(&self) -> DescribeResponse {
        let state = self.lock();
        let rank = state.loaded.as_ref().map(|plan| plan.rank.0);
        DescribeResponse {
            version: self.identity.version.clone(),
            model: self.identity.model.to_string(),
            epoch: state.newest.0,
            rank: rank.unwrap_or_default(),
            loaded: rank.is_some(),
            num_sequences: self.rank.num_sequences() as u32,
        }
    }
}

#[tonic::async_trait]
impl Worker for Service {
    type LoadStream = BoxStream<'static, Result<LoadProgress, Status>>;
    type ExecuteStream = BoxStream<'static, Result<StepOutput, Status>>;

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.0.describe()))
    }

    async fn load(
        &self,
        request: Request<LoadRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let identity = &self.0.identity;
        let plan = wire::plan(request.into_inner(), identity.num_layers, identity.num_experts)
            .map_err(|error| status::field(&error))?;
        let progress = load::begin(Arc::clone(&self.0), plan).await?;
        Ok(Response::new(progress))
    }

    async fn form_group(
        &self,
        request: Request<FormGroupRequest>,
    ) -> Result<Response<FormGroupResponse>, Status> {
        let identity = &self.0.identity;
        let plan = wire::group(request.into_inner(), identity.num_layers, identity.num_experts)
            .map_err(|error| status::field(&error))?;
        let epoch = plan.epoch;
        let span = info_span!("worker.form_group", %epoch, rank = %plan.rank);
        self.0.form_group(plan).instrument(span).await?;
        Ok(Response::new(FormGroupResponse { epoch: epoch.0 }))
    }

    async fn execute(
        &self,
        request: Request<Streaming<RankBatch>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let span = debug_span!("worker.execute");
        let outputs = execute::begin(Arc::clone(&self.0), request.into_inner(), span)?;
        Ok(Response::new(outputs))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        self.0.drain(&request.into_inner().reason).await;
        Ok(Response::new(DrainResponse {}))
    }
}
