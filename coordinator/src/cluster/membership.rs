//! The members of one model group: workers that hold an open lease.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use metrics::gauge;
use switchyard_moe::ids::{ModelId, WorkerId};
use switchyard_proto::cluster::register_event::Event;
use switchyard_proto::cluster::{Drain, RegisterEvent, RegisterRequest, Registered};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::info;

use super::{ModelGroupOptions, limits};
use crate::metric_definitions as names;

/// Events that wait in one lease stream: its beginning, and its end.
const LEASE_EVENTS_MAX: usize = 4;

/// The version that workers must have.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a worker is refused. The message says what differs, and between whom.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another release.
    #[error(
        "version differs: worker {worker} is switchyard {theirs}, the coordinator is {VERSION}; run the same release on both"
    )]
    Version {
        /// Who asks.
        worker: String,
        /// Its version.
        theirs: String,
    },
    /// Other numerics.
    #[error(
        "numerics differ: worker {worker} computes in {theirs:?}, model {model} is served in {ours:?}"
    )]
    Numerics {
        /// Who asks.
        worker: String,
        /// Its numerics.
        theirs: String,
        /// The model.
        model: ModelId,
        /// The model's numerics.
        ours: &'static str,
    },
    /// Another checkpoint.
    #[error(
        "checkpoint differs: worker {worker} has {theirs}, {other} has {ours}; give all workers of model {model} the same files"
    )]
    Checkpoint {
        /// Who asks.
        worker: String,
        /// Its fingerprint.
        theirs: String,
        /// Whose checkpoint counts.
        other: String,
        /// That one's fingerprint.
        ours: String,
        /// The model.
        model: ModelId,
    },
    /// Another kind of device, whose results differ in their last bits.
    #[error(
        "device differs: worker {worker} computes on {theirs}, {other} on {ours}; start all workers of model {model} on one kind of device"
    )]
    Device {
        /// Who asks.
        worker: String,
        /// Its kind of device.
        theirs: String,
        /// Whose kind counts.
        other: String,
        /// That one's kind.
        ours: String,
        /// The model.
        model: ModelId,
    },
    /// Another idea of the group's size.
    #[error(
        "world size differs: worker {worker} expects {theirs} workers for model {model}, {other} expects {ours}"
    )]
    WorldSize {
        /// Who asks.
        worker: String,
        /// Its world size.
        theirs: u32,
        /// The member it differs from.
        other: String,
        /// That one's world size.
        ours: u32,
        /// The model.
        model: ModelId,
    },
    /// A group of nobody.
    #[error(
        "worker {worker} expects a group of 0 workers; start it with a world size of at least 1"
    )]
    NoWorldSize {
        /// Who asks.
        worker: String,
    },
    /// The coordinator is going down.
    #[error("the coordinator is shutting down")]
    Stopping,
}

/// One registered worker.
#[derive(Debug)]
pub struct Member {
    /// Its id.
    pub id: WorkerId,
    /// What it said of itself.
    pub info: RegisterRequest,
    /// Cancelled when it is no member any more.
    pub gone: CancellationToken,
    lease: mpsc::Sender<Result<RegisterEvent, Status>>,
}

/// The members of one group, by id.
pub type Members = BTreeMap<WorkerId, Arc<Member>>;

/// Who is a member. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Membership {
    state: watch::Sender<State>,
    model: ModelId,
    numerics: &'static str,
    /// Whether the group was started with a checkpoint to expect.
    is_expected: bool,
}

/// The members, and what they have agreed on.
#[derive(Debug)]
struct State {
    members: Members,
    last_id: WorkerId,
    /// The checkpoint that all workers must have, and who says so.
    checkpoint: Option<(String, String)>,
    /// The kind of device that all workers must have, and who says so.
    device: Option<(String, String)>,
    /// Whether `checkpoint` outlives the members: sequences are under way that only its likes can go on with.
    is_checkpoint_pinned: bool,
    /// The same of `device`.
    is_device_pinned: bool,
    stopping: bool,
}

/// A worker's lease: it ends when the worker goes away, or when it is put out.
#[derive(Debug)]
pub struct Lease {
    events: mpsc::Receiver<Result<RegisterEvent, Status>>,
    id: WorkerId,
    membership: Membership,
}

// === impl Member ===

impl Member {
    /// What it computes on, for people.
    #[must_use]
    pub fn device(&self) -> String {
        match &self.info.device {
            Some(device) if device.kind == limits::CPU => match device.threads {
                0 => limits::CPU.to_owned(),
                1 => "cpu, 1 thread".to_owned(),
                threads => format!("cpu, {threads} threads"),
            },
            Some(device) if !device.name.is_empty() => device.name.clone(),
            Some(_) | None => self.device_kind().to_owned(),
        }
    }

    /// The kind of its device.
    #[must_use]
    pub fn device_kind(&self) -> &str {
        device_kind(&self.info)
    }
}

/// A worker that does not say computes on a processor.
fn device_kind(info: &RegisterRequest) -> &str {
    let kind = info.device.as_ref().map_or("", |device| device.kind.as_str());
    if kind.is_empty() { limits::CPU } else { kind }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "worker {} ({})", self.id, name(&self.info))
    }
}

// === impl Membership ===

impl Membership {
    pub(super) fn new(options: &ModelGroupOptions) -> Self {
        let expected = options.checkpoint_fingerprint.clone();
        let state = State {
            is_checkpoint_pinned: expected.is_some(),
            is_device_pinned: false,
            device: None,
            members: Members::new(),
            last_id: WorkerId(0),
            checkpoint: expected.map(|fingerprint| (fingerprint, "the coordinator".to_owned())),
            stopping: false,
        };
        Self {
            state: watch::Sender::new(state),
            model: options.model.clone(),
            numerics: options.numerics.as_str(),
            is_expected: options.checkpoint_fingerprint.is_some(),
        }
    }

    /// Makes a worker a member for as long as the lease lives.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn join(&self, info: RegisterRequest) -> Result<Lease, Error> {
        let (lease, events) = mpsc::channel(LEASE_EVENTS_MAX);
        let mut result = Err(Error::Stopping);
        self.state.send_if_modified(|state| {
            result = self.admit(state, info, lease);
            result.is_ok()
        });
        let id = result?;
        self.count();
        Ok(Lease { events, id, membership: self.clone() })
    }

    fn admit(
        &self,
        state: &mut State,
        info: RegisterRequest,
        lease: mpsc::Sender<Result<RegisterEvent, Status>>,
    ) -> Result<WorkerId, Error> {
        self.check(state, &info)?;
        let id = WorkerId(state.last_id.0 + 1);
        state.last_id = id;
        state.checkpoint.get_or_insert_with(|| {
            (info.checkpoint_fingerprint.clone(), format!("worker {}", name(&info)))
        });
        state.device.get_or_insert_with(|| {
            (device_kind(&info).to_owned(), format!("worker {}", name(&info)))
        });
        let registered = Event::Registered(Registered { worker_id: id.0 });
        // The queue is new and has room.
        let _ = lease.try_send(Ok(RegisterEvent { event: Some(registered) }));
        let member = Member { id, info, gone: CancellationToken::new(), lease };
        info!(model = %self.model, %member, "worker registered");
        state.members.insert(id, Arc::new(member));
        Ok(id)
    }

    fn check(&self, state: &State, info: &RegisterRequest) -> Result<(), Error> {
        let worker = || name(info);
        let model = || self.model.clone();
        if state.stopping {
            return Err(Error::Stopping);
        }
        if info.world_size == 0 {
            return Err(Error::NoWorldSize { worker: worker() });
        }
        if info.version != VERSION {
            return Err(Error::Version { worker: worker(), theirs: info.version.clone() });
        }
        if info.numerics != self.numerics {
            let theirs = info.numerics.clone();
            return Err(Error::Numerics {
                worker: worker(),
                theirs,
                model: model(),
                ours: self.numerics,
            });
        }
        if let Some((ours, other)) = &state.checkpoint
            && *ours != info.checkpoint_fingerprint
        {
            return Err(Error::Checkpoint {
                worker: worker(),
                theirs: info.checkpoint_fingerprint.clone(),
                other: other.clone(),
                ours: ours.clone(),
                model: model(),
            });
        }
        if let Some((ours, other)) = &state.device
            && ours != device_kind(info)
        {
            return Err(Error::Device {
                worker: worker(),
                theirs: device_kind(info).to_owned(),
                other: other.clone(),
                ours: ours.clone(),
                model: model(),
            });
        }
        if let Some(other) = state.members.values().next()
            && other.info.world_size != info.world_size
        {
            return Err(Error::WorldSize {
                worker: worker(),
                theirs: info.world_size,
                other: other.to_string(),
                ours: other.info.world_size,
                model: model(),
            });
        }
        Ok(())
    }

    /// Keeps to the present members' checkpoint and kind of device, even when all of them leave.
    pub(super) fn pin(&self) {
        self.state.send_if_modified(|state| {
            state.is_checkpoint_pinned = true;
            state.is_device_pinned = true;
            false
        });
    }

    /// Lets the next members bring another kind of device, and another checkpoint unless the group was started with one.
    pub(super) fn unpin(&self) {
        self.state.send_if_modified(|state| {
            state.is_checkpoint_pinned = self.is_expected;
            state.is_device_pinned = false;
            state.forget();
            false
        });
    }

    /// The members now.
    #[must_use]
    pub fn members(&self) -> Members {
        self.state.borrow().members.clone()
    }

    /// Waits until `ready` holds of the members. Cancel safe.
    pub async fn wait_for(&self, mut ready: impl FnMut(&Members) -> bool) {
        // Cannot fail: this `self` keeps the sender alive.
        let _ = self.state.subscribe().wait_for(|state| ready(&state.members)).await;
    }

    /// Ends a membership from this side. The worker's lease ends with the reason as its error.
    pub fn expel(&self, id: WorkerId, reason: &str) {
        let member = self.remove(id);
        if let Some(member) = member {
            let _ = member.lease.try_send(Err(Status::failed_precondition(reason)));
        }
    }

    /// Asks every member to exit, and lets nobody in any more.
    pub fn drain(&self, reason: &str) {
        self.close(|member| {
            let drain = Event::Drain(Drain { reason: reason.to_owned() });
            let _ = member.lease.try_send(Ok(RegisterEvent { event: Some(drain) }));
        });
    }

    /// Ends every lease, so that the workers look for another coordinator, and lets nobody in any more.
    pub fn release(&self) {
        self.close(|member| {
            let released = Status::unavailable("this coordinator stops; another takes over");
            let _ = member.lease.try_send(Err(released));
        });
    }

    fn close(&self, tell: impl Fn(&Member)) {
        let mut members = Members::new();
        self.state.send_modify(|state| {
            state.stopping = true;
            members = std::mem::take(&mut state.members);
        });
        for member in members.values() {
            tell(member);
            member.gone.cancel();
        }
        self.count();
    }

    fn count(&self) {
        let num_members = self.state.borrow().members.len();
        gauge!(names::CLUSTER_WORKERS, names::MODEL => self.model.as_str().to_owned())
            .set(num_members as f64);
    }

    fn remove(&self, id: WorkerId) -> Option<Arc<Member>> {
        let mut removed = None;
        self.state.send_if_modified(|state| {
            removed = state.members.remove(&id);
            state.forget();
            removed.is_some()
        });
        if let Some(member) = &removed {
            info!(model = %self.model, %member, "worker left");
            member.gone.cancel();
            self.count();
        }
        removed
    }
}

// === impl State ===

impl State {
    /// Forgets what only members who have left have agreed on.
    fn forget(&mut self) {
        if !self.members.is_empty() {
            return;
        }
        if !self.is_checkpoint_pinned {
            self.checkpoint = None;
        }
        if !self.is_device_pinned {
            self.device = None;
        }
    }
}

// === impl Lease ===

impl Stream for Lease {
    type Item = Result<RegisterEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.membership.remove(self.id);
    }
}

/// A worker as messages name it.
fn name(info: &RegisterRequest) -> String {
    format!("{}, pid {}", info.control_address, info.pid)
}
