//! Members into a formed group: dial, load, connect to each other, open the step streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::{join_all, try_join_all};
use switchyard_moe::ids::{EpRank, GroupEpoch, WorkerId};
use switchyard_moe::placement::Placement;
use switchyard_proto::worker::load_progress::Phase as LoadPhase;
use switchyard_proto::worker::{
    self, FormGroupRequest, LayerPlacement, LoadProgress, LoadRequest, Peer,
};
use tokio::sync::mpsc;
use tokio::time::{Duration, error::Elapsed, timeout};

use super::link::{self, Connector, RankLink};
use super::membership::Member;
use super::{ModelGroupOptions, limits};
use crate::engine::group::{Group, KvBytes, RankStream};
use crate::engine::status::RankMember;
use crate::scheduler::{Limits, STEPS_IN_FLIGHT_MAX};

/// Why a group could not be formed.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank}, {member}: {operation} failed: {source}")]
pub(super) struct Error {
    pub(super) rank: EpRank,
    pub(super) member: Arc<Member>,
    pub(super) operation: Operation,
    /// Shown in the message: it is the worker's own words, not a cause of our making.
    pub(super) source: link::Error,
}

/// What was asked of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Connect,
    Load,
    FormGroup,
    Execute,
}

/// The part of the model that a worker has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    rank: usize,
    world_size: usize,
}

/// Forms groups, and remembers what each worker already has.
#[derive(Debug)]
pub(super) struct Former {
    options: ModelGroupOptions,
    limits: Limits,
    kv: KvBytes,
    connector: Arc<dyn Connector>,
    workers: BTreeMap<WorkerId, Worker>,
}

/// A worker that has been dialled.
#[derive(Clone, Debug)]
struct Worker {
    link: Arc<dyn RankLink>,
    shard: Option<Shard>,
}

/// Members in the order of their ranks, and the links to them.
#[derive(Clone, Debug)]
pub(super) struct Cohort {
    pub(super) members: Vec<Arc<Member>>,
}

// === impl Operation ===

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting to it",
            Self::Load => "loading",
            Self::FormGroup => "forming the group",
            Self::Execute => "opening its step stream",
        })
    }
}

// === impl Cohort ===

impl Cohort {
    pub(super) fn world_size(&self) -> usize {
        self.members.len()
    }

    /// Whether a worker is one of its ranks.
    pub(super) fn contains(&self, id: WorkerId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    /// Waits until a member's lease has ended; returns its rank. Cancel safe.
    pub(super) async fn lost(&self) -> (EpRank, Arc<Member>) {
        let gone: Vec<_> =
            self.members.iter().map(|member| Box::pin(member.gone.cancelled())).collect();
        let ((), rank, _) = futures::future::select_all(gone).await;
        (EpRank(rank as u32), Arc::clone(&self.members[rank]))
    }

    /// What status tells of the ranks; none has loaded anything.
    pub(super) fn describe(&self) -> Vec<RankMember> {
        let describe = |member: &Arc<Member>| RankMember {
            worker: member.id,
            address: member.info.control_address.clone(),
            pid: member.info.pid,
            device: member.device(),
            loaded: 0.0,
            is_lost: false,
        };
        self.members.iter().map(describe).collect()
    }

    fn ranked(&self) -> impl Iterator<Item = (EpRank, &Arc<Member>)> {
        (0..).map(EpRank).zip(&self.members)
    }
}

// === impl Former ===

impl Former {
    pub(super) fn new(
        options: ModelGroupOptions,
        limits: Limits,
        connector: Arc<dyn Connector>,
    ) -> Self {
        let kv = limits::kv_bytes(&options, limits::CPU);
        Self { options, limits, kv, connector, workers: BTreeMap::new() }
    }

    /// Computes with what the members' kind of device has room for; tells whether that has changed.
    pub(super) fn fit(&mut self, members: &[Arc<Member>]) -> bool {
        let kind = members.first().map_or(limits::CPU, |member| member.device_kind());
        // The options have been resolved once, for the kind with the fewest blocks.
        self.kv = limits::kv_bytes(&self.options, kind);
        let fitting = limits::resolve(&self.options, kind).unwrap_or(self.limits);
        std::mem::replace(&mut self.limits, fitting) != fitting
    }

    /// What each rank has room for.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Gives each member a rank: the one whose experts it already holds, else a free one in the order of ids.
    pub(super) fn assign(&mut self, members: Vec<Arc<Member>>) -> Cohort {
        let world_size = members.len();
        let mut ranks: Vec<Option<Arc<Member>>> = vec![None; world_size];
        let mut others = Vec::new();
        for member in members {
            let held = self.workers.get(&member.id).and_then(|worker| worker.shard);
            match held.filter(|shard| shard.world_size == world_size) {
                Some(shard) if ranks[shard.rank].is_none() => ranks[shard.rank] = Some(member),
                _ => others.push(member),
            }
        }
        let mut others = others.into_iter();
        let members =
            ranks.into_iter().filter_map(|taken| taken.or_else(|| others.next())).collect();
        Cohort { members }
    }

    /// Forgets workers that are no members any more.
    pub(super) fn retain(&mut self, is_member: impl Fn(WorkerId) -> bool) {
        self.workers.retain(|&id, _| is_member(id));
    }

    /// Dials the ranks of `cohort` that are in `chosen` and makes them load what they do not hold yet.
    /// `progress` hears of each rank's fraction.
    pub(super) async fn load(
        &mut self,
        cohort: &Cohort,
        chosen: impl Fn(WorkerId) -> bool,
        progress: &(dyn Fn(EpRank, f32) + Send + Sync),
    ) -> Result<(), Error> {
        let placement = self.placement(cohort.world_size());
        self.forget_other_shards(cohort, &chosen);
        let chosen = cohort.ranked().filter(|(_, member)| chosen(member.id));
        let loads = chosen.map(|(rank, member)| {
            let request = LoadRequest {
                rank: rank.0,
                world_size: cohort.world_size() as u32,
                placement: Some(placement.clone()),
                limits: Some(limits::cache_limits(&self.limits)),
            };
            self.prepare(rank, member, request, progress)
        });
        // All of them run to their end: what did load is of use to the next attempt.
        let mut result = Ok(());
        for loaded in join_all(loads.collect::<Vec<_>>()).await {
            match loaded {
                Ok((id, worker)) => {
                    self.workers.insert(id, worker);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Dials a worker, unless it has been, and makes it load, unless it has.
    async fn prepare(
        &self,
        rank: EpRank,
        member: &Arc<Member>,
        request: LoadRequest,
        progress: &(dyn Fn(EpRank, f32) + Send + Sync),
    ) -> Result<(WorkerId, Worker), Error> {
        let timeouts = &self.options.timeouts;
        let address = &member.info.control_address;
        let (link, held) = match self.workers.get(&member.id).cloned() {
            Some(worker) => (worker.link, worker.shard),
            None => {
                let link = timeout(timeouts.probe, self.connector.connect(address))
                    .await
                    .unwrap_or_else(|elapsed| Err(late(elapsed)))
                    .map_err(|source| failed(rank, member, Operation::Connect, source))?;
                (Arc::from(link), None)
            }
        };
        let wanted = Shard { rank: rank.0 as usize, world_size: request.world_size as usize };
        if held != Some(wanted) {
            let progress = |fraction| progress(rank, fraction);
            load(&*link, timeouts.load_silence, request, &progress)
                .await
                .map_err(|source| failed(rank, member, Operation::Load, source))?;
        }
        progress(rank, 1.0);
        Ok((member.id, Worker { link, shard: Some(wanted) }))
    }

    /// A load that fails or is given up half-way leaves nothing to rely on, so what it replaces is forgotten first.
    fn forget_other_shards(&mut self, cohort: &Cohort, chosen: &impl Fn(WorkerId) -> bool) {
        let world_size = cohort.world_size();
        for (rank, member) in cohort.members.iter().enumerate().filter(|(_, m)| chosen(m.id)) {
            if let Some(worker) = self.workers.get_mut(&member.id) {
                worker.shard = worker.shard.filter(|&shard| shard == Shard { rank, world_size });
            }
        }
    }

    /// Connects the loaded ranks of `cohort` under `epoch` and opens their step streams.
    pub(super) async fn connect(&self, cohort: &Cohort, epoch: GroupEpoch) -> Result<Group, Error> {
        let placement = self.placement(cohort.world_size());
        let peers: Vec<Peer> = cohort
            .ranked()
            .map(|(rank, member)| Peer {
                rank: rank.0,
                data_address: member.info.data_address.clone(),
            })
            .collect();
        let deadline = self.options.timeouts.form;
        let formed = self.links(cohort).map(|(rank, member, link)| {
            let request = FormGroupRequest {
                epoch: epoch.0,
                rank: rank.0,
                peers: peers.clone(),
                placement: Some(placement.clone()),
                deadline_ms: deadline.as_millis() as u32,
            };
            async move {
                // The worker's own deadline comes first, and its message says which peer is missing.
                timeout(deadline + self.options.timeouts.probe, link.form_group(request))
                    .await
                    .unwrap_or_else(|elapsed| Err(late(elapsed)))
                    .map_err(|source| failed(rank, &member, Operation::FormGroup, source))
            }
        });
        let results: Vec<Result<(), Error>> = join_all(formed.collect::<Vec<_>>()).await;
        if let Some(error) = worst(results) {
            return Err(error);
        }
        let streams = self.links(cohort).map(|(rank, member, link)| async move {
            let (batches, receiver) = mpsc::channel(STEPS_IN_FLIGHT_MAX);
            let outputs = timeout(self.options.timeouts.probe, link.execute(receiver))
                .await
                .unwrap_or_else(|elapsed| Err(late(elapsed)))
                .map_err(|source| failed(rank, &member, Operation::Execute, source))?;
            Ok(RankStream { batches, outputs })
        });
        let ranks = try_join_all(streams.collect::<Vec<_>>()).await?;
        Ok(Group { epoch, limits: self.limits, kv: self.kv, ranks })
    }

    /// Asks the ranks of `cohort` for a sign of life; returns those that give none, with what happened instead, and
    /// the newest epoch that any worker knows.
    pub(super) async fn probe(
        &self,
        cohort: &Cohort,
    ) -> (Vec<(EpRank, Arc<Member>, link::Error)>, GroupEpoch) {
        let probes = self.links(cohort).map(|(rank, member, link)| async move {
            let answer = timeout(self.options.timeouts.probe, link.describe())
                .await
                .unwrap_or_else(|elapsed| Err(late(elapsed)));
            (rank, member, answer)
        });
        let mut silent = Vec::new();
        let mut newest = GroupEpoch(0);
        for (rank, member, answer) in join_all(probes.collect::<Vec<_>>()).await {
            match answer {
                Ok(worker) => newest = newest.max(GroupEpoch(worker.epoch)),
                Err(error) => silent.push((rank, member, error)),
            }
        }
        (silent, newest)
    }

    fn links(
        &self,
        cohort: &Cohort,
    ) -> impl Iterator<Item = (EpRank, Arc<Member>, Arc<dyn RankLink>)> {
        cohort.ranked().filter_map(|(rank, member)| {
            let worker = self.workers.get(&member.id)?;
            Some((rank, Arc::clone(member), Arc::clone(&worker.link)))
        })
    }

    fn placement(&self, world_size: usize) -> worker::Placement {
        let config = &self.options.config;
        let placement =
            Placement::contiguous(config.num_hidden_layers, config.n_routed_experts, world_size);
        let layers = placement.layers().iter().map(|layer| LayerPlacement {
            slots_per_rank: layer.slots_per_rank() as u32,
            physical_to_logical: layer
                .physical_to_logical()
                .iter()
                .map(|expert| expert.map_or(-1, |expert| expert.0 as i32))
                .collect(),
        });
        worker::Placement { layers: layers.collect() }
    }
}

async fn load(
    link: &dyn RankLink,
    silence: Duration,
    request: LoadRequest,
    progress: &(dyn Fn(f32) + Send + Sync),
) -> Result<(), link::Error> {
    let mut messages = timeout(silence, link.load(request)).await.map_err(late)??;
    let mut is_ready = false;
    while let Some(message) = timeout(silence, messages.next()).await.map_err(late)? {
        let message = message?;
        is_ready = message.phase() == LoadPhase::Ready;
        progress(fraction(&message));
    }
    if is_ready {
        Ok(())
    } else {
        Err(link::Error::Failed("it stopped reporting before everything was loaded".to_owned()))
    }
}

fn fraction(progress: &LoadProgress) -> f32 {
    if progress.bytes_total == 0 {
        return 0.0;
    }
    (progress.bytes_done as f64 / progress.bytes_total as f64) as f32
}

fn late(_: Elapsed) -> link::Error {
    link::Error::Lost("it did not answer in time".to_owned())
}

fn failed(rank: EpRank, member: &Arc<Member>, operation: Operation, source: link::Error) -> Error {
    Error { rank, member: Arc::clone(member), operation, source }
}

/// The error that says most: a worker that is gone is the cause of what its peers complain about.
fn worst(results: Vec<Result<(), Error>>) -> Option<Error> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    let lost = errors.iter().position(|error| matches!(error.source, link::Error::Lost(_)));
    (!errors.is_empty()).then(|| errors.swap_remove(lost.unwrap_or(0)))
}
