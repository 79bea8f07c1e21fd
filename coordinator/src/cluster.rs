//! Workers, groups, epochs: who serves a model, and what happens when that changes.
//!
//! A worker registers with the [`Registrar`] and stays a member for as long as its lease stream is open. One
//! supervisor task per model group turns members into a *formed group* (load, connect, open the step streams), hands it to
//! the group's engine, and makes the next epoch when a member is lost or joins.
//! - [`options`]: what a group is started with.
//! - [`limits`]: what that means in blocks and tokens.
//! - [`registrar`]: the gRPC service that workers dial.
//! - [`membership`]: the members of one group, and their leases.
//! - [`link`]: how a worker is driven; gRPC, or a simulation in tests.
//! - `supervisor`: the state machine of one group.
//! - `form`: members into a formed group.

use std::collections::BTreeMap;
use std::sync::Arc;

use switchyard_moe::ids::ModelId;
use switchyard_tls::Security;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{self, Engine, Handle};

pub mod options;
pub mod limits;
pub mod registrar;
pub mod membership;
pub mod link;
mod supervisor;
mod form;

#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;

pub use options::{CacheOptions, Farewell, ModelGroupOptions, Timeouts};
pub use registrar::Registrar;

use link::Connector;
use membership::Membership;
use supervisor::Supervisor;

/// Why the cluster does not start, or stops early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two groups serve one model.
    #[error("model {0} is configured twice; give each model its own id")]
    DuplicateModel(ModelId),
    /// A group's limits are impossible.
    #[error("model {model} cannot be served")]
    Limits {
        /// The model.
        model: ModelId,
        /// What is impossible.
        #[source]
        source: limits::Error,
    },
    /// A task of the cluster panicked.
    #[error("a task of the cluster ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

/// The tasks of all model groups. [`run`](Self::run) must be polled for anything to happen.
#[derive(Debug)]
pub struct Service {
    registrar: Registrar,
    tasks: Vec<(Engine, Supervisor)>,
    cut: CancellationToken,
}

/// The model groups of this coordinator, by model. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Groups(Arc<BTreeMap<ModelId, Handle>>);

// === impl Service ===

impl Service {
    /// Prepares one engine and one supervisor for each model; nothing runs yet. Workers are dialled with `security`.
    ///
    /// # Errors
    /// Two groups with one model, or limits under which no sequence fits.
    pub fn new(
        groups: Vec<ModelGroupOptions>,
        security: &Security,
    ) -> Result<(Self, Groups), Error> {
        let connector = link::grpc::GrpcConnector::new(security);
        Self::with_connector(groups, &(Arc::new(connector) as Arc<dyn Connector>))
    }

    /// As [`new`](Self::new), dialling workers through `connector`.
    pub(crate) fn with_connector(
        groups: Vec<ModelGroupOptions>,
        connector: &Arc<dyn Connector>,
    ) -> Result<(Self, Groups), Error> {
        let mut memberships = BTreeMap::new();
        let mut handles = BTreeMap::new();
        let mut tasks = Vec::new();
        for options in groups {
            let model = options.model.clone();
            let limits = limits::resolve(&options, limits::CPU)
                .map_err(|source| Error::Limits { model: model.clone(), source })?;
            let membership = Membership::new(&options);
            let (engine, handle, remote) = Engine::new(engine::Options {
                model: model.clone(),
                limits,
                step_deadline: options.timeouts.step,
                drain_timeout: options.timeouts.drain,
            });
            let supervisor =
                Supervisor::new(options, limits, membership.clone(), remote, Arc::clone(connector));
            if handles.insert(model.clone(), handle).is_some() {
                return Err(Error::DuplicateModel(model));
            }
            memberships.insert(model, membership);
            tasks.push((engine, supervisor));
        }
        let registrar = Registrar::new(memberships);
        Ok((Self { registrar, tasks, cut: CancellationToken::new() }, Groups(Arc::new(handles))))
    }

    /// The gRPC service that workers dial; mount it as `ClusterServer::new(service.registrar())`.
    #[must_use]
    pub fn registrar(&self) -> Registrar {
        self.registrar.clone()
    }

    /// Ends it all at once when cancelled: sequences fail, and no step is sent any more.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Serves until `shutdown` is cancelled: then accepted sequences get [`Timeouts::drain`] to finish, the rest
    /// fails, and workers are told as [`Farewell`] says.
    ///
    /// # Errors
    /// [`Error::Task`] when a task panicked; the others are stopped.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        for (engine, supervisor) in self.tasks {
            // The supervisor outlives its engine, which needs the workers while it drains.
            let drained = CancellationToken::new();
            let engine_done = drained.clone().drop_guard();
            let (stop, cut) = (shutdown.clone(), self.cut.clone());
            tasks.spawn(async move {
                let _done = engine_done;
                engine.run(stop, cut).await;
            });
            tasks.spawn(supervisor.run(drained));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(Error::Task)?;
        }
        Ok(())
    }
}

// === impl Groups ===

impl Groups {
    /// The engine of `model`, or `None` when no such model is served.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<&Handle> {
        self.0.get(model)
    }

    /// All models with their engines, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelId, &Handle)> {
        self.0.iter()
    }
}
