//! The state machine of one group: gather members, form, serve, and begin again.
//!
//! Join, loss and failure are one operation: make the next epoch. Whoever is left when it is made is in it.

use std::sync::Arc;

use metrics::{Counter, counter};
use switchyard_moe::ids::{EpRank, GroupEpoch, ModelId};
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span, warn};

use super::form::{self, Cohort, Former, Operation};
use super::limits;
use super::link::{self, Connector};
use super::membership::{Member, Members, Membership};
use super::{Farewell, ModelGroupOptions, Timeouts};
use crate::engine::group::{Command, Group, GroupFailure, Remote};
use crate::engine::status::{Fault, Phase};
use crate::metric_definitions as names;
use crate::scheduler::Limits;

/// Pause after an attempt that failed though every worker is alive, so that a fault that stays is not a busy loop.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Makes one group's epochs.
#[derive(Debug)]
pub(super) struct Supervisor {
    model: ModelId,
    timeouts: Timeouts,
    options: ModelGroupOptions,
    membership: Membership,
    remote: Remote,
    former: Former,
    epoch: GroupEpoch,
}

/// Between two epochs.
#[derive(Debug)]
struct Outage {
    /// What ended the last epoch, naming the culprit; `None` before the first.
    reason: Option<String>,
    /// Until when a full group is worth waiting for.
    grace_until: Instant,
    /// When accepted sequences are given up; `None` when there are none to give up.
    give_up_at: Option<Instant>,
}

/// Why an epoch ended.
#[derive(Debug)]
enum End {
    /// A step failed, as the engine tells it.
    Failed(GroupFailure),
    /// A member's lease ended.
    Lost(EpRank, Arc<Member>),
    /// Workers that were not in this epoch are ready for the next.
    Joined(Vec<Arc<Member>>),
}

// === impl Supervisor ===

impl Supervisor {
    pub(super) fn new(
        options: ModelGroupOptions,
        limits: Limits,
        membership: Membership,
        remote: Remote,
        connector: Arc<dyn Connector>,
    ) -> Self {
        Self {
            model: options.model.clone(),
            timeouts: options.timeouts,
            former: Former::new(options.clone(), limits, connector),
            options,
            membership,
            remote,
            epoch: GroupEpoch(0),
        }
    }

    /// Runs until `shutdown` is cancelled, then lets the members go.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.supervise() => {}
        }
        match self.options.farewell {
            Farewell::Exit => self.membership.drain("the coordinator is shutting down"),
            Farewell::Stay => self.membership.release(),
        }
    }

    async fn supervise(&mut self) {
        let mut outage = Outage::before_first();
        loop {
            let members = self.gather(&mut outage).await;
            if self.former.fit(&members) || self.epoch == GroupEpoch(0) {
                limits::warn_if_lowered(&self.options, self.former.limits());
            }
            let cohort = self.former.assign(members);
            self.expect_faults(cohort.world_size());
            match self.form(&cohort, outage.reason.is_none()).await {
                Ok(group) => {
                    let began = Instant::now();
                    let end = self.serve(&cohort, group).await;
                    outage = self.close(&cohort, end).await;
                    sleep_until(began + RETRY_PAUSE).await;
                }
                Err(error) => self.blame(&cohort, &error).await,
            }
        }
    }

    /// Waits for the members of the next epoch.
    async fn gather(&mut self, outage: &mut Outage) -> Vec<Arc<Member>> {
        loop {
            let members = self.membership.members();
            self.former.retain(|id| members.contains_key(&id));
            let now = Instant::now();
            if outage.give_up_at.is_some_and(|at| at <= now) {
                self.give_up(outage).await;
            }
            let want = world_size(&members);
            let enough = match (&outage.reason, want) {
                (_, Some(want)) if members.len() >= want => Some(want),
                (Some(_), Some(_)) if now >= outage.grace_until => {
                    Some(members.len()).filter(|&left| left >= self.min_world_size(&members))
                }
                _ => None,
            };
            if let Some(world_size) = enough {
                return members.into_values().take(world_size).collect();
            }
            self.show_gathering(outage, &members, now);
            let wake = [Some(outage.grace_until).filter(|&at| at > now), outage.give_up_at];
            let changed = self.membership.wait_for(|present| present.keys().ne(members.keys()));
            tokio::select! {
                biased;
                () = changed => {}
                () = wait_until(wake.into_iter().flatten().min()) => {}
            }
        }
    }

    fn show_gathering(&self, outage: &Outage, members: &Members, now: Instant) {
        match &outage.reason {
            None => self.remote.set_phase(Phase::WaitingForWorkers {
                have: members.len(),
                want: world_size(members),
            }),
            Some(reason) if now >= outage.grace_until => {
                let reason = format!(
                    "{reason}; {} workers are left, the model needs {}",
                    members.len(),
                    self.min_world_size(members)
                );
                self.remote.set_phase(Phase::Unavailable { reason });
            }
            Some(_) => {}
        }
    }

    /// Fails the sequences that have waited too long; what follows is like the first forming.
    async fn give_up(&self, outage: &mut Outage) {
        let reason = outage.reason.take().unwrap_or_default();
        error!(model = %self.model, reason, "recovery timed out, running sequences fail");
        let waited = self.timeouts.recovery.as_secs();
        let reason = format!("{reason}; not recovered within {waited} s");
        self.remote.command(Command::FailAll { reason }).await;
        self.membership.unpin();
        *outage = Outage::before_first();
    }

    /// Makes the next epoch of `cohort`. Progress is shown only when nothing was served before: later, "recovering" with
    /// its reason says more.
    async fn form(&mut self, cohort: &Cohort, is_first: bool) -> Result<Group, form::Error> {
        let span =
            info_span!("cluster.form_group", model = %self.model, world_size = cohort.world_size());
        let forming = async {
            let remote = &self.remote;
            remote.set_members(cohort.describe());
            if is_first {
                remote.set_phase(Phase::Loading { ranks: vec![0.0; cohort.world_size()] });
            }
            let progress = |rank: EpRank, fraction: f32| {
                remote.set_loaded(rank, fraction);
                remote.update_phase(|phase| {
                    if let Phase::Loading { ranks } = phase {
                        ranks[rank.0 as usize] = fraction;
                    }
                });
            };
            self.former.load(cohort, |_| true, &progress).await?;
            if is_first {
                remote.set_phase(Phase::Forming);
            }
            // Workers that outlived an earlier coordinator know epochs that this one does not.
            let (_, newest) = self.former.probe(cohort).await;
            self.epoch = GroupEpoch(self.epoch.max(newest).0 + 1);
            info!(epoch = %self.epoch, "forming group");
            tokio::select! {
                biased;
                (rank, member) = cohort.lost() => Err(form::Error {
                    rank,
                    member,
                    operation: Operation::FormGroup,
                    source: link::Error::Lost("its registration ended".to_owned()),
                }),
                group = self.former.connect(cohort, self.epoch) => group,
            }
        };
        forming.instrument(span).await
    }

    /// Puts out the workers that kept a group from being formed. With nobody to put out, the next attempt waits a moment.
    async fn blame(&mut self, cohort: &Cohort, error: &form::Error) {
        warn!(model = %self.model, %error, "group not formed");
        self.fault(names::FAULT_NOT_FORMED, &[error.rank], error.to_string());
        let is_refusal = matches!(error.source, link::Error::Failed(_));
        match error.operation {
            Operation::Load if is_refusal => self.expel(&error.member, &error.to_string()),
            Operation::Connect => self.expel(&error.member, &error.to_string()),
            Operation::Load | Operation::FormGroup | Operation::Execute => {}
        }
        self.expel_silent(cohort).await;
        let members = self.membership.members();
        if cohort.members.iter().all(|member| members.contains_key(&member.id)) {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Lets the engine use `group` until it ends.
    async fn serve(&mut self, cohort: &Cohort, group: Group) -> End {
        self.membership.pin();
        self.remote.command(Command::Serve(group)).await;
        tokio::select! {
            biased;
            failure = self.remote.failure(self.epoch) => End::Failed(failure),
            (rank, member) = cohort.lost() => End::Lost(rank, member),
            joined = preload(&self.membership, &mut self.former, cohort) => End::Joined(joined),
        }
    }

    /// Takes the group away from the engine, if it still has it, and puts out workers that do not answer.
    async fn close(&mut self, cohort: &Cohort, end: End) -> Outage {
        let now = Instant::now();
        let give_up_at = Some(now + self.timeouts.recovery);
        let (reason, grace) = match end {
            End::Failed(GroupFailure { reason, suspects, .. }) => {
                self.fault(names::FAULT_STEP_FAILED, &suspects, reason.clone());
                (reason, self.timeouts.rejoin_grace)
            }
            End::Lost(rank, member) => {
                let reason = format!("rank {rank}, {member}, left");
                self.fault(names::FAULT_WORKER_LOST, &[rank], reason.clone());
                (reason, self.timeouts.rejoin_grace)
            }
            End::Joined(members) => {
                let names: Vec<String> = members.iter().map(ToString::to_string).collect();
                (format!("{} joins", names.join(", ")), Duration::ZERO)
            }
        };
        warn!(model = %self.model, epoch = %self.epoch, reason, "epoch ends");
        let retire = Command::Retire { epoch: self.epoch, reason: reason.clone() };
        self.remote.command(retire).await;
        self.expel_silent(cohort).await;
        Outage { reason: Some(reason), grace_until: now + grace, give_up_at }
    }

    async fn expel_silent(&self, cohort: &Cohort) {
        let (silent, _) = self.former.probe(cohort).await;
        // One whose lease has ended has left already.
        let silent = silent.into_iter().filter(|(_, member, _)| !member.gone.is_cancelled());
        for (rank, member, error) in silent {
            let reason = format!("rank {rank}, {member}, does not answer: {error}");
            self.expel(&member, &reason);
            self.fault(names::FAULT_WORKER_SILENT, &[rank], reason);
        }
    }

    /// Counts a fault, once for each culprit, and remembers it.
    fn fault(&self, fault: &'static str, culprits: &[EpRank], message: String) {
        let ranks = culprits.to_vec();
        let at = Instant::now();
        self.remote.add_fault(Fault { at, kind: fault, ranks, epoch: self.epoch, message });
        if culprits.is_empty() {
            self.faults(fault, names::RANK_UNKNOWN.to_owned()).increment(1);
        }
        culprits.iter().for_each(|rank| self.faults(fault, rank.to_string()).increment(1));
    }

    /// Makes the counters of all faults that ranks can have: an alert sees the first one only if there was a 0 before it.
    fn expect_faults(&self, world_size: usize) {
        let ranks = (0..world_size).map(|rank| rank.to_string());
        for rank in ranks.chain([names::RANK_UNKNOWN.to_owned()]) {
            for fault in names::FAULTS {
                self.faults(fault, rank.clone()).increment(0);
            }
        }
    }

    fn faults(&self, fault: &'static str, rank: String) -> Counter {
        let model = self.model.as_str().to_owned();
        let labels = [(names::MODEL, model), (names::FAULT, fault.to_owned()), (names::RANK, rank)];
        counter!(names::CLUSTER_FAULTS_TOTAL, &labels)
    }

    fn expel(&self, member: &Member, reason: &str) {
        warn!(model = %self.model, reason, "worker put out");
        self.membership.expel(member.id, reason);
    }

    fn min_world_size(&self, members: &Members) -> usize {
        let memory = members
            .values()
            .filter_map(|member| member.info.device.as_ref())
            .map(|device| device.memory_bytes)
            .min();
        limits::min_world_size(&self.options.config, memory.unwrap_or(0))
    }
}

// === impl Outage ===

impl Outage {
    /// Nothing was served yet, or nothing is left of it.
    fn before_first() -> Self {
        Self { reason: None, grace_until: Instant::now(), give_up_at: None }
    }
}

/// Workers of a whole group, on which all members agree.
fn world_size(members: &Members) -> Option<usize> {
    members.values().next().map(|member| member.info.world_size as usize)
}

/// Waits until workers join a group that is not whole, and have loaded what they will hold in the next epoch. Cancel safe:
/// what is given up half-way is loaded again.
async fn preload(
    membership: &Membership,
    former: &mut Former,
    cohort: &Cohort,
) -> Vec<Arc<Member>> {
    loop {
        let grows = |members: &Members| {
            world_size(members).is_some_and(|want| cohort.world_size() < want)
                && members.keys().any(|&id| !cohort.contains(id))
        };
        membership.wait_for(grows).await;
        let members = membership.members();
        let want = world_size(&members).unwrap_or(0);
        let next = former.assign(members.into_values().take(want).collect());
        let is_new = |id| !cohort.contains(id);
        match former.load(&next, is_new, &|_, _| {}).await {
            Ok(()) => {
                return next.members.into_iter().filter(|member| is_new(member.id)).collect();
            }
            Err(error) => {
                warn!(%error, "worker cannot join");
                membership.expel(error.member.id, &error.to_string());
            }
        }
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
