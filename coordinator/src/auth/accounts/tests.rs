use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use jiff::civil::date;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::auth::report::{Group, GroupBy, Query, Sum};
use crate::auth::testing::{Fixture, NOW};
use crate::auth::{KeyChange, KeyLimits, Terms};

struct Door {
    accounts: Accounts,
    fixture: Fixture,
    key: String,
    stop: DropGuard,
    writer: tokio::task::JoinHandle<()>,
}

impl Door {
    async fn new(models: &[&str], limits: KeyLimits) -> Self {
        let fixture = Fixture::sqlite().await;
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        let terms = Terms { models, limits, ..Terms::default() };
        let (_, key) = fixture.keys.create(&terms).await.unwrap();
        let (accounts, writer) = Accounts::new(fixture.keys.clone());
        let stop = CancellationToken::new();
        let writer = tokio::spawn(writer.run(stop.clone()));
        Self { accounts, fixture, key: key.expose().to_owned(), stop: stop.drop_guard(), writer }
    }

    async fn account(&self) -> Account {
        self.accounts.authenticate(&self.key).await.unwrap()
    }

    async fn lease(&self) -> Lease {
        self.accounts.admit(&self.account().await).unwrap()
    }

    /// Requests, and tokens of prompts and answers, once everything is recorded.
    async fn used(self) -> Option<(u64, Tokens)> {
        drop(self.stop);
        self.writer.await.unwrap();
        let day = date(2026, 11, 22);
        let group_by = GroupBy::Model;
        let query = Query { from: day, to: day, key_id: None, model: None, group_by };
        let sums = self.fixture.keys.usage(&query).await.unwrap();
        assert!(sums.len() <= 1);
        sums.into_iter().next().map(|Sum { group, requests, tokens }| {
            assert_eq!(group, Group::Model("flash".into()));
            (requests, tokens)
        })
    }
}

fn limits(requests: u32, tokens: u32, concurrent: u32, monthly: u64) -> KeyLimits {
    KeyLimits {
        requests_per_minute: NonZeroU32::new(requests),
        tokens_per_minute: NonZeroU32::new(tokens),
        concurrent_requests: NonZeroU32::new(concurrent),
        monthly_tokens: NonZeroU64::new(monthly),
    }
}

fn limit(denied: Denied) -> (LimitKind, u32) {
    let Denied::Limit { kind, limit, retry_after } = denied else { panic!("{denied:?}") };
    assert!(retry_after >= Duration::from_secs(1));
    (kind, limit)
}

#[tokio::test]
async fn a_finished_bill_is_durable_and_one_that_is_dropped_counts_so_far() {
    let door = Door::new(&[], limits(0, 0, 0, 0)).await;
    let lease = door.lease().await;
    let mut finished = lease.begin("flash", 100, 0).unwrap();
    finished.generated(1, 1);
    finished.generated(9, 2);
    let expect = Tokens { prompt: 100, cached: 0, completion: 10, reasoning: 3 };
    assert_eq!(finished.tokens(), expect);
    finished.settle(Tokens { cached: 40, ..expect });
    finished.finish().await.unwrap();
    // The client goes away in the middle of the answer.
    let mut dropped = lease.begin("flash", 20, 0).unwrap();
    dropped.generated(3, 0);
    drop(dropped);
    // The engine's queue is full.
    lease.begin("flash", 1000, 0).unwrap().withdraw();
    let tokens = Tokens { prompt: 120, cached: 40, completion: 13, reasoning: 3 };
    assert_eq!(door.used().await, Some((2, tokens)));
}

#[tokio::test]
async fn a_bill_whose_last_wait_is_cut_short_is_recorded_once() {
    let door = Door::new(&[], limits(0, 0, 0, 0)).await;
    let lease = door.lease().await;
    // Dropped before the first poll, and after it.
    drop(lease.begin("flash", 7, 0).unwrap().finish());
    let mut waiting = Box::pin(lease.begin("flash", 7, 0).unwrap().finish());
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(waiting);
    let tokens = Tokens { prompt: 14, ..Tokens::default() };
    assert_eq!(door.used().await, Some((2, tokens)));
}

#[tokio::test]
async fn a_lease_lasts_until_its_last_clone_is_gone() {
    let door = Door::new(&[], limits(0, 0, 1, 0)).await;
    let account = door.account().await;
    let lease = door.accounts.admit(&account).unwrap();
    let charge = lease.clone().begin("flash", 1, 0).unwrap();
    drop(lease);
    assert_eq!(limit(door.accounts.admit(&account).unwrap_err()), (LimitKind::Concurrent, 1));
    charge.finish().await.unwrap();
    door.accounts.admit(&account).unwrap();
}

#[tokio::test]
async fn tokens_are_charged_when_they_are_known_and_given_back_when_withdrawn() {
    let door = Door::new(&[], limits(0, 600, 0, 0)).await;
    let account = door.account().await;
    // Only now: the database has a clock of its own.
    tokio::time::pause();
    let left = || door.accounts.allowances(&account).tokens.unwrap().remaining;
    let lease = door.accounts.admit(&account).unwrap();
    let mut charge = lease.begin("flash", 500, 0).unwrap();
    assert_eq!(left(), 100);
    assert_eq!(limit(lease.begin("flash", 200, 0).unwrap_err()), (LimitKind::Tokens, 600));
    lease.begin("flash", 100, 0).unwrap().withdraw();
    assert_eq!(left(), 100);
    // An answer is not cut off; what comes next waits.
    charge.generated(250, 0);
    assert_eq!(left(), 0);
    charge.settle(Tokens { prompt: 500, completion: 90, ..Tokens::default() });
    assert_eq!(left(), 10);
    charge.settle(Tokens { prompt: 500, completion: 250, ..Tokens::default() });
    assert_eq!(limit(door.accounts.admit(&account).unwrap_err()), (LimitKind::Tokens, 600));
    tokio::time::advance(Duration::from_secs(15)).await;
    door.accounts.admit(&account).unwrap();
}

#[tokio::test]
async fn only_allowed_models_are_served() {
    let door = Door::new(&["flash", "pro"], limits(0, 100, 0, 0)).await;
    let account = door.account().await;
    let lease = door.accounts.admit(&account).unwrap();
    let denied = lease.begin("other", 50, 0).unwrap_err();
    assert_eq!(denied.code(), "model_not_allowed");
    assert_eq!(
        denied.to_string(),
        "the API key may not use the model `other`; it may use flash, pro"
    );
    assert_eq!(door.accounts.allowances(&account).tokens.unwrap().remaining, 100);
    lease.begin("pro", 1, 0).unwrap();
}

#[tokio::test]
async fn a_month_that_is_used_up_ends_with_the_month() {
    let door = Door::new(&[], limits(0, 0, 0, 100)).await;
    let mut charge = door.lease().await.begin("flash", 60, 0).unwrap();
    // The last request may exceed the budget: how long its answer gets is not known before.
    charge.generated(50, 0);
    charge.finish().await.unwrap();
    let id = door.account().await.key_id();
    door.fixture.keys.update(id, &KeyChange::default()).await.unwrap();
    let account = door.account().await;
    assert_eq!(account.month_tokens(), 110);
    let denied = door.accounts.admit(&account).unwrap_err();
    let left = 8 * 86_400 + 8 * 3600 + 56 * 60;
    let retry_after = Duration::from_secs(left);
    assert_eq!(denied, Denied::Quota { limit: 100, retry_after });
    assert_eq!(denied.code(), "insufficient_quota");

    door.fixture.set_time(NOW + i64::try_from(left).unwrap());
    door.fixture.keys.update(id, &KeyChange::default()).await.unwrap();
    door.lease().await;
}
