mod crash;

use std::time::Duration;

use futures::future::join_all;
use jiff::civil::date;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::auth::report::{Group, GroupBy, Query, Sum};
use crate::auth::testing::{Fixture, NOW, fixtures};
use crate::auth::{KeyStore, Terms};

struct Running {
    ledger: Ledger,
    stop: CancellationToken,
    writer: JoinHandle<()>,
}

impl Running {
    fn start(keys: &KeyStore) -> Self {
        let (ledger, writer) = Ledger::new(keys);
        let stop = CancellationToken::new();
        Self { ledger, writer: tokio::spawn(writer.run(stop.clone())), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.writer.await.unwrap();
    }
}

fn usage(key: i64, model: &str, tokens: [u64; 4]) -> Usage {
    let [prompt, cached, completion, reasoning] = tokens;
    let tokens = Tokens { prompt, cached, completion, reasoning };
    Usage { key_id: KeyId::new(key), model: model.into(), tokens }
}

fn query(group_by: GroupBy) -> Query {
    let (from, to) = (date(2026, 1, 1), date(2026, 12, 31));
    Query { from, to, key_id: None, model: None, group_by }
}

fn sum(group: Group, requests: u64, tokens: [u64; 4]) -> Sum {
    Sum { group, requests, tokens: usage(0, "", tokens).tokens }
}

/// Requests and prompt tokens of everybody.
async fn totals(keys: &KeyStore) -> (u64, u64) {
    let sums = keys.usage(&query(GroupBy::Day)).await.unwrap();
    sums.iter().fold((0, 0), |(requests, prompt), sum| {
        (requests + sum.requests, prompt + sum.tokens.prompt)
    })
}

#[tokio::test]
async fn what_is_acknowledged_can_be_read_and_is_summed_up() {
    for fixture in &fixtures().await {
        let keys = &fixture.keys;
        let (record, _) =
            keys.create(&Terms { name: "app".into(), ..Terms::default() }).await.unwrap();
        let id = record.id.get();
        let running = Running::start(keys);
        let ledger = &running.ledger;
        ledger.charge(usage(id, "flash", [10, 4, 5, 2])).await.unwrap();
        ledger.charge(usage(id, "pro", [100, 0, 50, 0])).await.unwrap();
        ledger.charge(usage(99, "flash", [1, 1, 1, 1])).await.unwrap();
        fixture.set_time(NOW + 86_400);
        ledger.charge(usage(id, "flash", [20, 0, 7, 3])).await.unwrap();

        let (first, second) = (date(2026, 11, 22), date(2026, 11, 23));
        let by_day = keys.usage(&query(GroupBy::Day)).await.unwrap();
        let expect =
            [sum(Group::Day(first), 3, [111, 5, 56, 3]), sum(Group::Day(second), 1, [20, 0, 7, 3])];
        assert_eq!(by_day, expect);
        let by_key = keys.usage(&query(GroupBy::Key)).await.unwrap();
        let expect = [
            sum(Group::Key(record.id, "app".into()), 3, [130, 4, 62, 5]),
            sum(Group::Key(KeyId::new(99), String::new()), 1, [1, 1, 1, 1]),
        ];
        assert_eq!(by_key, expect);
        let of_one = Query {
            key_id: Some(record.id),
            model: Some("flash".into()),
            to: first,
            ..query(GroupBy::Model)
        };
        let expect = [sum(Group::Model("flash".into()), 1, [10, 4, 5, 2])];
        assert_eq!(keys.usage(&of_one).await.unwrap(), expect);
        running.stop().await;
    }
}

#[tokio::test]
async fn charges_at_once_share_commits_and_none_is_lost() {
    for Fixture { keys, .. } in &fixtures().await {
        let running = Running::start(keys);
        let charges = (0..500).map(|n| running.ledger.charge(usage(n % 7, "flash", [1, 0, 0, 0])));
        assert!(join_all(charges).await.iter().all(Result::is_ok));
        assert_eq!(totals(keys).await, (500, 500));
        running.stop().await;
        let pool = &keys.database().pool;
        let batches: i64 = sqlx::query_scalar("SELECT MAX(batch) FROM usage_writers")
            .fetch_one(pool)
            .await
            .unwrap();
        assert!(batches <= 3, "{batches} commits for 500 charges");
    }
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_counted_once() {
    for Fixture { keys, .. } in &fixtures().await {
        let (ledger, mut writer) = Ledger::new(keys);
        ledger.record(usage(1, "flash", [10, 0, 0, 0]));
        let batch = std::mem::replace(&mut ledger.0.state().batch, Batch::new());
        writer.number = 1;
        // As if the answer to the first commit had been lost.
        writer.commit(&batch).await.unwrap();
        writer.commit(&batch).await.unwrap();
        assert_eq!(totals(keys).await, (1, 10));
        writer.number = 2;
        writer.commit(&batch).await.unwrap();
        assert_eq!(totals(keys).await, (2, 20));
    }
}

#[tokio::test]
async fn a_commit_that_fails_is_tried_again() {
    for fixture in &fixtures().await {
        let keys = &fixture.keys;
        fixture.execute("ALTER TABLE usage RENAME TO away").await;
        let running = Running::start(keys);
        let mut charge = Box::pin(running.ledger.charge(usage(1, "flash", [10, 0, 0, 0])));
        let refused = tokio::time::timeout(Duration::from_millis(100), &mut charge).await;
        assert!(refused.is_err(), "nothing can be durable now: {refused:?}");
        running.ledger.record(usage(2, "flash", [5, 0, 0, 0]));
        fixture.execute("ALTER TABLE away RENAME TO usage").await;
        charge.await.unwrap();
        running.stop().await;
        assert_eq!(totals(keys).await, (2, 15));
    }
}

#[tokio::test]
async fn at_the_end_everything_is_recorded_and_then_nothing_more() {
    for Fixture { keys, .. } in &fixtures().await {
        let running = Running::start(keys);
        let ledger = running.ledger.clone();
        ledger.record(usage(1, "flash", [10, 0, 0, 0]));
        // Nobody waits for this one: it counts all the same.
        drop(ledger.charge(usage(1, "flash", [10, 0, 0, 0])));
        running.stop().await;
        assert_eq!(totals(keys).await, (2, 20));
        let late = ledger.charge(usage(1, "flash", [10, 0, 0, 0])).await;
        assert_eq!(late, Err(Error::Closed));
        assert_eq!(totals(keys).await, (2, 20));
    }
}

#[tokio::test]
async fn a_client_does_not_wait_for_ever() {
    let fixture = Fixture::sqlite().await;
    let (ledger, _never_runs) = Ledger::new(&fixture.keys);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let late = ledger.charge(usage(1, "flash", [10, 0, 0, 0])).await;
    assert_eq!((late, began.elapsed().as_secs()), (Err(Error::Late), DURABLE_WITHIN.as_secs()));
}
