//! A process that is killed in the middle of it: this test program starts itself, and kills that.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use futures::StreamExt as _;
use futures::stream;

use super::*;

/// Tells this program that it is the one to be killed, and which database it shall fill.
const URL: &str = "SWITCHYARD_TEST_CRASH_URL";
/// The test below.
const VICTIM: &str = "auth::ledger::tests::crash::the_one_that_is_killed";
/// What it says of each charge that was acknowledged.
const ACKNOWLEDGED: &str = "acknowledged ";

#[tokio::test]
async fn what_was_acknowledged_outlives_a_kill() {
    for fixture in &fixtures().await {
        let mut acknowledged = BTreeSet::new();
        for kill_after in [1, 40, 400] {
            let first_key = i64::try_from(acknowledged.len()).unwrap() + kill_after * 100_000;
            acknowledged.extend(kill_in_the_middle(&fixture.url, first_key, kill_after));
        }
        let keys = fixture.reopen().await;
        let recorded = keys.usage(&query(GroupBy::Key)).await.unwrap();
        let mut once = BTreeSet::new();
        for sum in recorded {
            let Group::Key(id, _) = sum.group else { panic!("{sum:?}") };
            assert_eq!((sum.requests, sum.tokens.prompt), (1, 10), "key {id}");
            once.insert(id.get());
        }
        let lost: Vec<_> = acknowledged.difference(&once).collect();
        assert!(lost.is_empty(), "{lost:?} of {} were lost", acknowledged.len());
    }
}

/// Starts a process that charges one key after another, kills it, and returns what it had been acknowledged.
fn kill_in_the_middle(url: &str, first_key: i64, kill_after: i64) -> Vec<i64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", VICTIM, "--nocapture"])
        .env(URL, format!("{first_key} {url}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test harness writes to the same line.
        let Some((_, key)) = line.split_once(ACKNOWLEDGED) else { continue };
        // The last line may be cut off.
        let Some(key) = key.strip_suffix('.') else { continue };
        acknowledged.push(key.parse().unwrap());
        if i64::try_from(acknowledged.len()).unwrap() == kill_after {
            // SIGKILL. What is in the pipe by then was acknowledged, too.
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
    assert!(i64::try_from(acknowledged.len()).unwrap() >= kill_after);
    acknowledged
}

/// Does nothing unless it is started by the test above.
#[tokio::test]
async fn the_one_that_is_killed() {
    let Some(told) = std::env::var_os(URL) else { return };
    let told = told.into_string().unwrap();
    let (first_key, url) = told.split_once(' ').unwrap();
    let first_key: i64 = first_key.parse().unwrap();
    let keys = KeyStore::open(url).await.unwrap();
    let running = Running::start(&keys);
    let ledger = &running.ledger;
    stream::iter(first_key..first_key + 50_000)
        .for_each_concurrent(16, async |key| {
            ledger.charge(usage(key, "flash", [10, 0, 0, 0])).await.unwrap();
            println!("{ACKNOWLEDGED}{key}.");
        })
        .await;
}
