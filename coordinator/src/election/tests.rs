use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::candidate::{Record, Stored};
use super::lease::{LeaseStore, StoreError};
use super::*;

mod simulation;

/// A lease in memory, behind a network that can be cut.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stored: Option<Stored>,
    num_writes: u64,
    is_cut: bool,
}

impl Shared {
    fn cut(&self, is_cut: bool) {
        self.0.lock().unwrap().is_cut = is_cut;
    }

    fn write_by_hand(&self, holder: Option<&str>, duration: Duration) {
        let mut state = self.0.lock().unwrap();
        state.num_writes += 1;
        let version = state.num_writes.to_string();
        let record = Record { holder: holder.map(str::to_owned), duration, transitions: 4 };
        state.stored = Some(Stored { record, version });
    }

    fn record(&self) -> Record {
        self.0.lock().unwrap().stored.clone().unwrap().record
    }
}

/// One candidate's way to the lease, which can be cut by itself.
#[derive(Clone, Debug, Default)]
struct Way {
    shared: Shared,
    own: Arc<Mutex<bool>>,
}

impl Way {
    fn to(shared: &Shared) -> Self {
        Self { shared: shared.clone(), own: Arc::default() }
    }

    fn cut(&self, is_cut: bool) {
        *self.own.lock().unwrap() = is_cut;
    }

    async fn pass(&self) {
        sleep(Duration::from_millis(5)).await;
        if *self.own.lock().unwrap() || self.shared.0.lock().unwrap().is_cut {
            std::future::pending::<()>().await;
        }
    }
}

impl LeaseStore for Way {
    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        async {
            self.pass().await;
            Ok(self.shared.0.lock().unwrap().stored.clone())
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        record: &'a Record,
        over: Option<&'a Stored>,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            self.pass().await;
            let mut state = self.shared.0.lock().unwrap();
            if state.stored.as_ref().map(|stored| &stored.version) != over.map(|over| &over.version)
            {
                return Err(StoreError::Conflict);
            }
            state.num_writes += 1;
            let stored = Stored { record: record.clone(), version: state.num_writes.to_string() };
            state.stored = Some(stored.clone());
            Ok(stored)
        }
        .boxed()
    }
}

/// A candidate at work.
struct Running {
    way: Way,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(name: &str, shared: &Shared) -> Self {
        let way = Way::to(shared);
        let election = Box::new(LeaseElection::new(name, Timing::default(), way.clone()));
        let (sender, standing) = watch::channel(Standing::StandsBy { leader: None });
        let stop = CancellationToken::new();
        let task = tokio::spawn(election.run(sender, stop.clone()));
        Self { way, standing, stop, task }
    }

    /// Waits until it leads, or has lost, and tells how long that took.
    async fn until(&mut self, ready: impl FnMut(&Standing) -> bool) -> Duration {
        let began = Instant::now();
        self.standing.wait_for(ready).await.unwrap();
        began.elapsed()
    }

    fn leads(&self) -> bool {
        self.standing.borrow().leads()
    }
}

fn about(found: Duration, expect: Duration) -> bool {
    // A retry and some requests.
    (expect..expect + Duration::from_millis(2200)).contains(&found)
}

#[tokio::test]
async fn without_others_it_leads_from_the_start_and_until_told() {
    let (sender, standing) = watch::channel(Standing::StandsBy { leader: None });
    let stop = CancellationToken::new();
    let run = Box::new(Unopposed).run(sender, stop.clone());
    assert!(standing.borrow().leads());
    stop.cancel();
    run.await;
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_knows_whom() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    let mut second = Running::start("second", &shared);
    second.until(|standing| standing.leader().is_some_and(|name| name.starts_with("first"))).await;
    sleep(Duration::from_secs(3600)).await;
    assert!(first.leads() && !second.leads());
    assert_eq!(shared.record().transitions, 0);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_replaced_when_its_lease_is_over() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    let mut second = Running::start("second", &shared);
    sleep(Duration::from_secs(60)).await;
    first.task.abort();
    let waited = second.until(Standing::leads).await;
    // Up to one retry of the lease had passed when it died.
    let lease = Timing::default().lease();
    assert!(about(waited, lease - Timing::default().retry()) || about(waited, lease), "{waited:?}");
    assert_eq!(shared.record().transitions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_told_to_stop_makes_way_at_once() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    let mut second = Running::start("second", &shared);
    sleep(Duration::from_secs(60)).await;
    first.stop.cancel();
    first.task.await.unwrap();
    let waited = second.until(Standing::leads).await;
    assert!(about(waited, Duration::ZERO), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_network_stops_before_another_leads() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    let mut second = Running::start("second", &shared);
    sleep(Duration::from_secs(60)).await;
    first.way.cut(true);
    let waited = first.until(|standing| matches!(standing, Standing::Lost { .. })).await;
    assert!(waited <= Timing::default().renew_deadline(), "{waited:?}");
    assert!(!second.leads());
    let Standing::Lost { reason } = first.standing.borrow().clone() else { panic!() };
    assert!(reason.contains("not renewed within 10 s"), "{reason}");
    let waited = second.until(Standing::leads).await;
    assert!(waited >= Duration::from_secs(3), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_less_than_the_deadline_costs_nothing() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    let second = Running::start("second", &shared);
    for _ in 0..20 {
        sleep(Duration::from_secs(9)).await;
        shared.cut(true);
        sleep(Duration::from_secs(2)).await;
        shared.cut(false);
    }
    assert!(first.leads() && !second.leads());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_another_holds_stops_at_once() {
    let shared = Shared::default();
    let mut first = Running::start("first", &shared);
    first.until(Standing::leads).await;
    shared.write_by_hand(Some("somebody"), Duration::from_secs(15));
    let waited = first.until(|standing| matches!(standing, Standing::Lost { .. })).await;
    assert!(about(waited, Duration::ZERO), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_lease_is_taken_and_a_strangers_is_waited_for() {
    let shared = Shared::default();
    shared.write_by_hand(None, Duration::ZERO);
    let mut first = Running::start("first", &shared);
    assert!(about(first.until(Standing::leads).await, Duration::ZERO));
    assert_eq!(shared.record().transitions, 5);

    // What the record says counts, not what this candidate would have said.
    let shared = Shared::default();
    shared.write_by_hand(Some("stranger"), Duration::from_secs(40));
    let mut first = Running::start("first", &shared);
    let waited = first.until(Standing::leads).await;
    assert!(about(waited, Duration::from_secs(40)), "{waited:?}");
}

#[test]
fn times_must_leave_room_for_each_other() {
    let seconds = Duration::from_secs;
    let default = Timing::default();
    assert_eq!(Timing::new(seconds(15), seconds(10), seconds(2)), Ok(default));
    for [lease, renew, retry] in [[10, 10, 2], [15, 2, 2], [15, 10, 0], [2, 10, 15]] {
        let error = Timing::new(seconds(lease), seconds(renew), seconds(retry)).unwrap_err();
        assert!(error.to_string().contains(&format!("a lease of {lease} s")), "{error}");
    }
}
