//! A cluster whose processes are started one by one, as on several machines.

use serde_json::json;

use crate::harness::{Process, demo_model, eventually, http_client, program, question, run};

/// A coordinator that serves the demo model, and the event that tells its addresses.
pub(crate) async fn coordinator(data: &std::path::Path) -> (Process, serde_json::Value) {
    let model = format!("demo={}", demo_model().display());
    let data = data.to_str().unwrap();
    let args = ["coordinator", "--model", &model, "--data", data];
    let more = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-format", "json"];
    let args: Vec<_> = args.iter().chain(&more).copied().collect();
    let mut process = Process::start(&mut program(&args));
    let line = process.line_with("coordinator listens").await;
    let addresses: serde_json::Value = serde_json::from_str(&line).unwrap();
    (process, addresses)
}

/// Arguments of a worker of a group of two.
pub(crate) fn worker_args(grpc: &str, model: &std::path::Path) -> Vec<String> {
    let words = ["worker", "--world-size", "2", "--control", "127.0.0.1:0"];
    let mut args: Vec<_> = words.map(str::to_owned).to_vec();
    args.extend(["--data-plane".to_owned(), "127.0.0.1:0".to_owned()]);
    args.extend(["--coordinator".to_owned(), format!("http://{grpc}")]);
    args.extend(["--model".to_owned(), format!("demo={}", model.display())]);
    args
}

#[tokio::test]
async fn a_cluster_started_by_hand_serves_and_its_workers_leave_in_order() {
    let data = tempfile::tempdir().unwrap();
    let (coordinator, addresses) = coordinator(data.path()).await;
    let (http, grpc) = (addresses["http"].as_str().unwrap(), addresses["grpc"].as_str().unwrap());
    let url = format!("http://{http}");
    let client = http_client();
    let ready = async || {
        let response = client.get(format!("{url}/health/ready")).send().await.unwrap();
        response.status().as_u16() == 200
    };
    assert!(!ready().await, "no worker is there yet");

    // One is configured by flags, the other by a file.
    let by_flags = worker_args(grpc, &demo_model());
    let by_flags: Vec<_> = by_flags.iter().map(String::as_str).collect();
    let first = Process::start(&mut program(&by_flags));
    let file = tempfile::NamedTempFile::new().unwrap();
    let model = demo_model();
    let config = format!(
        "coordinator = \"http://{grpc}\"\nmodel = \"demo={}\"\nworld_size = 2\nthreads = 1\n",
        model.display()
    );
    std::fs::write(file.path(), config).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let free = free.to_string();
    let args = ["worker", "--config", file.path().to_str().unwrap(), "--metrics", &free];
    let second = Process::start(&mut program(&args));
    eventually("the cluster is ready", ready).await;

    let metrics = client.get(format!("http://{free}/metrics")).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("switchyard_worker_registered 1"));
    let (status, key) = run(&["keys", "--data", data.path().to_str().unwrap(), "create"]).await;
    assert!(status.success(), "{key}");
    let mut request = question(8);
    request["model"] = json!("demo");
    let answer = client.post(format!("{url}/v1/chat/completions"));
    let answer = answer.bearer_auth(key.lines().next().unwrap()).json(&request).send().await;
    assert_eq!(answer.unwrap().status(), 200);

    // The coordinator drains and sends its workers home.
    coordinator.signal("TERM").await;
    for process in [coordinator, first, second] {
        let (status, output) = process.wait().await;
        assert!(status.success(), "{output}");
    }
}
