//! `switchyard status` against a running cluster.

use serde_json::Value;

use crate::harness::{Up, eventually, question, run, signal};

async fn status(up: &Up) -> (bool, Value) {
    let data = up.data().to_str().unwrap();
    let (status, output) = run(&["status", "--url", &up.url, "--data", data, "--json"]).await;
    let object = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    (status.success(), object)
}

#[tokio::test]
async fn it_tells_ranks_load_and_a_killed_worker() {
    let up = Up::start(&[]).await;
    let (is_ready, before) = status(&up).await;
    assert!(is_ready && before["ready"] == true, "{before}");
    let model = &before["models"][0];
    assert_eq!((&model["id"], &model["phase"]), (&"demo-flash".into(), &"ready".into()));
    let pids: Vec<_> = model["ranks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rank| rank["pid"].as_u64().unwrap())
        .collect();
    let mut children = up.process.children();
    children.sort_unstable();
    let mut told: Vec<_> = pids.iter().map(|&pid| u32::try_from(pid).unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, children);

    assert_eq!(up.chat(&question(32)).await.0, 200);
    let (_, after) = status(&up).await;
    let model = &after["models"][0];
    assert!(model["generated_tokens_per_second"].as_f64().unwrap() > 0.0, "{model}");
    assert!(model["ranks"][1]["step_seconds"].as_f64().unwrap() > 0.0, "{model}");

    // The same for people; a pipe gets it once.
    let data = up.data().to_str().unwrap();
    let (ended, text) = run(&["status", "--url", &up.url, "--data", data]).await;
    assert!(ended.success() && text.contains("demo-flash  ready  epoch 1  ranks 2"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");

    let victim = u32::try_from(pids[1]).unwrap();
    signal(victim, "KILL").await;
    eventually("a fault names the rank", async || {
        let (_, told) = status(&up).await;
        let faults = told["models"][0]["faults"].as_array().unwrap().clone();
        faults.iter().any(|fault| fault["ranks"] == serde_json::json!([1]))
    })
    .await;
    up.stop().await;
}

#[tokio::test]
async fn without_the_admin_key_it_says_which_one_is_meant() {
    let up = Up::start(&["--workers", "1"]).await;
    let empty = tempfile::tempdir().unwrap();
    let data = empty.path().to_str().unwrap();
    let (ended, output) = run(&["status", "--url", &up.url, "--data", data]).await;
    assert!(!ended.success() && output.contains("--admin-key"), "{output}");
    // A client's key opens nothing.
    let args = ["status", "--url", &up.url, "--admin-key", &up.key];
    let (ended, output) = run(&args).await;
    assert!(!ended.success() && output.contains("does not accept the admin key"), "{output}");
    up.stop().await;
}

#[tokio::test]
async fn nobody_there_is_a_failure_for_scripts() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let (ended, output) = run(&["status", "--url", &url, "--admin-key", "any", "--json"]).await;
    assert_eq!(ended.code(), Some(1));
    assert!(output.contains("no server answers") && output.contains(&url), "{output}");
}
