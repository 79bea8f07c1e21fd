//! Coordinators that stop anywhere, and others that go on.

use std::pin::pin;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::poll_fn;
use proptest::prelude::*;

use super::*;
use crate::batches::journal::{Journal, Line};

/// Pulls at a future so many times, then drops it where it is; says whether it has ended.
async fn crash_after<T>(num_polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = num_polls;
    poll_fn(|context: &mut Context<'_>| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.poll_unpin(context).map(Some)
    })
    .await
}

/// Coordinators take turns at one batch; each but the last stops after so many steps. Every request ends up with exactly
/// one result, which is paid once, and the files are whole.
async fn run_with_crashes(fixture: &Fixture, crashes: &[usize]) {
    let setup = Setup::new(fixture);
    let bodies = (0..12)
        .map(|n| if n % 4 == 3 { json!({ "fail": 400, "n": n }) } else { json!({ "n": n }) });
    let bodies: Vec<_> = bodies.collect();
    let made = setup.create(&bodies).await;
    let mut now = NOW;
    for &num_polls in crashes {
        let runner = setup.runner();
        let _ = crash_after(num_polls, runner.run_once()).await;
        // The dead hold their leases for a while.
        now += LEASE_SECONDS;
        fixture.set_time(now);
    }
    setup.runner().run_once().await.unwrap();

    let batch = setup.get(&made.id).await;
    assert_eq!(batch.status, Status::Completed);
    let counts = batch.counts;
    assert_eq!((counts.total, counts.completed, counts.failed), (12, 9, 3));
    assert_eq!((9, batch.usage), times(9, PRICE));
    assert_eq!(charged(fixture).await, times(9, PRICE));
    let output = setup.lines(batch.output.as_ref()).await;
    let expected = ["c0", "c1", "c2", "c4", "c5", "c6", "c8", "c9", "c10"];
    assert_eq!(custom_ids(&output), expected);
    let errors = setup.lines(batch.error.as_ref()).await;
    assert_eq!(custom_ids(&errors), ["c3", "c7", "c11"]);
    // Two files of the batch and its input; nothing else was left in the lists.
    let all = ListFiles { purpose: None, limit: 10, newest_first: true, after: None };
    assert_eq!(setup.batches.files().list(OWNER, &all).await.unwrap().items.len(), 3);
}

#[test]
fn nothing_is_lost_and_nothing_done_twice_wherever_coordinators_stop() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = ProptestConfig::with_cases(24);
    config.failure_persistence = None;
    let mut tests = proptest::test_runner::TestRunner::new(config);
    let crashes = proptest::collection::vec(1_usize..250, 1..6);
    tests
        .run(&crashes, |crashes| {
            runtime.block_on(async {
                for fixture in &fixtures().await {
                    run_with_crashes(fixture, &crashes).await;
                }
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn each_single_step_may_be_the_last() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    for (num_batches, num_polls) in (1..).zip((1..).step_by(3)) {
        let made = setup.create(&[json!({ "n": 0 }), json!({ "n": 1 })]).await;
        let runner = setup.runner();
        let ended = crash_after(num_polls, runner.run_once()).await;
        let now = NOW + LEASE_SECONDS * i64::try_from(num_batches).unwrap();
        fixture.set_time(now);
        setup.runner().run_once().await.unwrap();
        let batch = setup.get(&made.id).await;
        assert_eq!((batch.status, batch.counts.completed), (Status::Completed, 2), "{num_polls}");
        assert_eq!(charged(&fixture).await, times(2 * num_batches, PRICE), "{num_polls}");
        let output = setup.lines(batch.output.as_ref()).await;
        assert_eq!(custom_ids(&output), ["c0", "c1"], "{num_polls}");
        if ended.is_some() {
            assert!(num_polls > 10, "{num_polls} steps are too few to have seen any");
            return;
        }
    }
}

#[tokio::test]
async fn what_a_crash_left_is_forgotten_at_the_next_start() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let made = setup.create(&[json!({})]).await;
    setup.runner().run_once().await.unwrap();
    let count = async || -> i64 {
        let pool = &fixture.keys.database().pool;
        sqlx::query_scalar("SELECT COUNT(*) FROM batch_lines").fetch_one(pool).await.unwrap()
    };
    assert_eq!(count().await, 0, "a batch that is over needs none");
    fixture
        .execute(
            "INSERT INTO batch_lines (batch_id, line, custom_id, begins_at, length) \
             SELECT id, 1, 'c0', 0, 1 FROM batches",
        )
        .await;
    assert_eq!(count().await, 1);
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(setup.runner().run(stop.clone()));
    while count().await > 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    running.await.unwrap();
    assert_eq!(setup.get(&made.id).await.status, Status::Completed);
}

#[tokio::test]
async fn two_coordinators_do_not_run_one_batch() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({ "n": 0 }), json!({ "n": 1 })]).await;
        let (first, second) = (setup.runner(), setup.runner());
        let (one, other) = tokio::join!(first.run_once(), second.run_once());
        let mut num_run = [one.unwrap(), other.unwrap()];
        num_run.sort_unstable();
        assert_eq!(num_run, [0, 1]);
        assert_eq!(setup.get(&made.id).await.status, Status::Completed);
        assert_eq!(setup.fake.num_calls.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn who_lost_the_lease_commits_nothing() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({ "n": 0 })]).await;
        // The first stands still in the middle of it, and does not know how long.
        let slow = setup.runner();
        let mut slow_run = pin!(slow.run_once());
        while setup.fake.num_calls.load(Ordering::Relaxed) == 0 {
            let pulled = crash_after(1, &mut slow_run).await;
            assert!(pulled.is_none(), "it ended before it asked anything");
            tokio::task::yield_now().await;
        }
        fixture.set_time(NOW + LEASE_SECONDS);
        setup.runner().run_once().await.unwrap();
        let batch = setup.get(&made.id).await;
        assert_eq!(batch.status, Status::Completed);
        slow_run.await.unwrap();
        assert_eq!(setup.get(&made.id).await, batch);
        assert_eq!(charged(fixture).await, times(1, PRICE));
    }
}

#[tokio::test]
async fn an_answer_is_recorded_once_and_by_who_holds_the_lease() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({}), json!({})]).await;
        let journal =
            || Journal::new(fixture.keys.database().clone(), fixture.keys.clock().clone());
        let line =
            |number| Line { number, custom_id: format!("c{number}"), begins_at: 0, length: 1 };
        let usage = Usage { key_id: OWNER, model: "flash".into(), tokens: PRICE };
        let answered = Answered { status: 200, body: Value::Null, usage: vec![usage] };
        let (dead, alive) = (journal(), journal());
        assert_eq!(dead.claim(LEASE_SECONDS).await.unwrap(), Some(made.id.clone()));
        dead.begin(&made.id, &[line(1), line(2)], LEASE_SECONDS).await.unwrap();
        assert_eq!(alive.claim(LEASE_SECONDS).await.unwrap(), None, "it is the other's");
        fixture.set_time(NOW + LEASE_SECONDS);
        assert_eq!(alive.claim(LEASE_SECONDS).await.unwrap(), Some(made.id.clone()));
        let mut recorded = Vec::new();
        for (journal, number) in [(&alive, 1), (&alive, 1), (&dead, 1), (&dead, 2)] {
            let is_new = journal.record(&made.id, &line(number), &answered, "{}").await.unwrap();
            recorded.push(is_new);
        }
        assert_eq!(recorded, [true, false, false, false]);
        assert_eq!(dead.renew(&made.id, LEASE_SECONDS).await.unwrap(), None);
        assert_eq!(charged(fixture).await, times(1, PRICE));
        assert_eq!(setup.get(&made.id).await.counts.completed, 1);
    }
}

#[tokio::test]
async fn a_runner_that_stops_gives_its_batches_up() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let made = setup.create(&[json!({}), json!({ "hang": true })]).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(setup.runner().run(stop.clone()));
    while setup.get(&made.id).await.counts.completed == 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    running.await.unwrap();
    // Without waiting for a lease to end.
    let next = setup.runner();
    let asked_again = async {
        while setup.fake.num_calls.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = next.run_once() => panic!("the second request hangs, but {ended:?}"),
        () = asked_again => {}
    }
}
