use proptest::prelude::*;
use serde_json::json;
use tokio::sync::oneshot;

use super::*;

const ANN: Owner = Owner(1);
const BOB: Owner = Owner(2);

fn kept(status: &str) -> Kept {
    let response =
        json!({ "status": status, "output": [{ "id": "msg_resp_a_0", "type": "message" }] });
    Kept::new(&response, &[json!({ "id": "msg_1" })])
}

fn store(count_max: usize, bytes_max: usize) -> Arc<Store> {
    let age_max = Duration::from_secs(60);
    Arc::new(Store::new(Bounds { count_max, bytes_max, age_max }))
}

fn not_found<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::NotFound { .. }))
}

#[test]
fn a_key_sees_its_own_responses_only() {
    let store = store(9, 9000);
    store.keep(ANN, "resp_a".into(), kept("completed"));
    assert_eq!(store.get(ANN, "resp_a").unwrap(), kept("completed"));
    assert!(not_found(store.get(BOB, "resp_a")));
    assert!(not_found(store.cancel(BOB, "resp_a")));
    assert!(not_found(store.delete(BOB, "resp_a")));
    assert!(matches!(store.history(BOB, "resp_a"), Err(Error::PreviousNotFound { .. })));
    assert_eq!(store.output_item(BOB, "msg_resp_a_0"), None);
    assert_eq!(store.output_item(ANN, "msg_resp_a_0").unwrap()["type"], "message");
    let ids = store.history(ANN, "resp_a").unwrap();
    assert_eq!(
        ids.iter().map(|item| item["id"].as_str().unwrap()).collect::<Vec<_>>(),
        ["msg_1", "msg_resp_a_0"]
    );
    assert!(matches!(store.cancel(ANN, "resp_a"), Err(Error::NotBackground { .. })));
    store.delete(ANN, "resp_a").unwrap();
    assert!(not_found(store.get(ANN, "resp_a")));
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_forgotten_after_its_time() {
    let store = store(9, 9000);
    store.keep(ANN, "old".into(), kept("completed"));
    let (_end, ended) = oneshot::channel::<Value>();
    let task = async { ended.await.unwrap_or_default() };
    store.spawn(ANN, "running".into(), kept("in_progress"), task).unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    store.keep(ANN, "new".into(), kept("completed"));
    assert!(store.get(ANN, "old").is_ok());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(not_found(store.get(ANN, "old")));
    assert!(store.get(ANN, "running").is_ok());
    assert!(store.get(ANN, "new").is_ok());
}

#[tokio::test]
async fn a_task_ends_cancelled_deleted_or_by_itself() {
    let store = store(9, 9000);
    let begin = |id: &str| {
        let (end, ended) = oneshot::channel::<Value>();
        let task = async { ended.await.unwrap_or_default() };
        store.spawn(ANN, id.into(), kept("in_progress"), task).unwrap();
        end
    };
    let status = |id: &str| store.get(ANN, id).unwrap().response()["status"].clone();

    let end = begin("whole");
    assert!(matches!(store.history(ANN, "whole"), Err(Error::PreviousUnfinished { .. })));
    end.send(json!({ "status": "completed", "output": [] })).unwrap();
    let mut cancelled = begin("cancelled");
    store.cancel(ANN, "cancelled").unwrap();
    cancelled.closed().await;
    let mut deleted = begin("deleted");
    store.delete(ANN, "deleted").unwrap();
    deleted.closed().await;
    store.drained().await;
    assert_eq!(status("whole"), "completed");
    assert_eq!(store.history(ANN, "whole").unwrap().len(), 1);
    assert_eq!(status("cancelled"), "cancelled");
    assert!(not_found(store.get(ANN, "deleted")));
    // What is over stays as it is.
    store.cancel(ANN, "whole").unwrap();
    assert_eq!(status("whole"), "completed");
}

#[tokio::test]
async fn no_more_tasks_than_places() {
    let store = store(2, 9000);
    store.keep(ANN, "over".into(), kept("completed"));
    let mut ends = Vec::new();
    for (id, fits) in [("1", true), ("2", true), ("3", false)] {
        let (end, ended) = oneshot::channel::<Value>();
        ends.push(end);
        let task = async { ended.await.unwrap_or_default() };
        let begun = store.spawn(ANN, id.into(), kept("in_progress"), task);
        assert_eq!(begun, if fits { Ok(()) } else { Err(Error::Full { count_max: 2 }) });
    }
    assert!(not_found(store.get(ANN, "over")), "it gave way");
    assert!(not_found(store.get(ANN, "3")));
    assert!(ends[2].is_closed(), "the task was not begun");
}

proptest! {
    /// Whatever is kept and deleted, the newest that fit are there, and bytes are counted right.
    #[test]
    fn the_oldest_go_first(sizes in prop::collection::vec((0_usize..400, any::<bool>()), 1..40)) {
        let store = store(5, 1000);
        let mut expect: Vec<(String, usize)> = Vec::new();
        for (index, (size, deletes)) in sizes.into_iter().enumerate() {
            if deletes && !expect.is_empty() {
                let (id, _) = expect.remove(size % expect.len());
                store.delete(ANN, &id).unwrap();
            }
            let id = format!("resp_{index}");
            let kept = Kept::new(&json!("x".repeat(size)), &[]);
            expect.push((id.clone(), kept.bytes()));
            store.keep(ANN, id, kept);
            while expect.len() > 5 || expect.iter().map(|(_, bytes)| bytes).sum::<usize>() > 1000 {
                expect.remove(0);
            }
            let inner = store.lock();
            let ids: Vec<&String> = inner.entries.keys().collect();
            prop_assert_eq!(ids, expect.iter().map(|(id, _)| id).collect::<Vec<_>>());
            prop_assert_eq!(inner.bytes, expect.iter().map(|(_, bytes)| bytes).sum::<usize>());
        }
    }
}
