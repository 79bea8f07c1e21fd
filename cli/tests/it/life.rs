//! The life of a cluster: it comes up, serves, survives, and leaves nothing behind.

use serde_json::json;

use crate::harness::{Up, eventually, is_alive, question, signal};

#[tokio::test]
async fn it_comes_up_serves_and_leaves_nothing() {
    let up = Up::start(&[]).await;
    assert_eq!(up.process.children().len(), 2, "one process per worker");
    assert!(!up.answer().await.is_empty());
    assert_eq!(up.get("/health/live").await.0, 200);
    assert_eq!(up.get("/health/ready").await.0, 200);
    assert!(up.get("/metrics").await.1.contains("switchyard_"));
    up.stop().await;
}

#[tokio::test]
async fn the_development_key_stays_the_same_and_a_chosen_one_is_not_shown() {
    let up = Up::start(&["--workers", "1"]).await;
    let stored = std::fs::read_to_string(up.data().join("dev-key")).unwrap();
    assert_eq!(stored.trim(), up.key);
    up.stop().await;

    let mut up = Up::start(&["--workers", "1", "--api-key", "sk-chosen-by-me"]).await;
    assert!(!up.process.output.contains("sk-chosen-by-me"));
    up.key = "sk-chosen-by-me".to_owned();
    up.answer().await;
    assert!(!up.data().join("dev-key").exists());
    up.stop().await;
}

#[tokio::test]
async fn two_models_are_served_side_by_side() {
    let other = crate::harness::copy_of_demo_model();
    let demo = format!("demo-flash={}", crate::harness::demo_model().display());
    let other = format!("other={}", other.path().display());
    let up = Up::start(&["--workers", "1", "--model", &demo, "--model", &other]).await;
    let mut request = question(8);
    let (_, first) = up.chat(&request).await;
    request["model"] = json!("other");
    let (status, second) = up.chat(&request).await;
    assert_eq!(status, 200);
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
    assert_eq!(second["model"], "other");
    request["model"] = json!("third");
    let (status, error) = up.chat(&request).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    up.stop().await;
}

#[tokio::test]
async fn a_running_answer_may_finish_after_ctrl_c() {
    let up = Up::start(&[]).await;
    let mut request = question(120);
    request["stream"] = json!(true);
    request["ignore_eos"] = json!(true);
    let mut stream = up.stream(&request).await;
    stream.chunk().await.unwrap().expect("the answer has begun");
    up.process.signal("INT").await;
    let mut text = String::new();
    while let Some(bytes) = stream.chunk().await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("[DONE]"), "{text}");
    let (status, output) = up.process.wait().await;
    assert!(status.success(), "{output}");
}

#[tokio::test]
async fn a_worker_that_dies_is_started_again() {
    let mut up = Up::start(&[]).await;
    let before = up.answer().await;
    let victim = up.process.children()[0];
    signal(victim, "KILL").await;
    up.process.line_with("killed by signal 9").await;
    eventually("two workers run again", async || {
        let workers = up.process.children();
        workers.len() == 2 && !workers.contains(&victim)
    })
    .await;
    eventually("the cluster is ready again", async || up.chat(&question(8)).await.0 == 200).await;
    assert_eq!(up.answer().await, before);
    up.stop().await;
}

#[tokio::test]
async fn workers_end_when_up_is_killed() {
    let up = Up::start(&[]).await;
    let workers = up.process.children();
    assert_eq!(workers.len(), 2);
    up.process.signal("KILL").await;
    eventually("the workers have ended", async || workers.iter().all(|pid| !is_alive(*pid))).await;
}
