//! Workers that do not fit the cluster are refused, and the message says why.

use switchyard_proto::cluster::cluster_client::ClusterClient;
use switchyard_proto::cluster::{Device, RegisterRequest};

use crate::by_hand::{coordinator, worker_args};
use crate::harness::{Process, copy_of_demo_model, demo_model, program, run};

async fn run_worker(args: &[String], more: &[&str]) -> (std::process::ExitStatus, String) {
    let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    run(&args).await
}

#[tokio::test]
async fn a_worker_with_another_checkpoint() {
    let data = tempfile::tempdir().unwrap();
    let (coordinator, addresses) = coordinator(data.path()).await;
    let grpc = addresses["grpc"].as_str().unwrap();
    let first = worker_args(grpc, &demo_model());
    let first: Vec<_> = first.iter().map(String::as_str).chain(["--log", "info"]).collect();
    let mut first = Process::start(&mut program(&first));
    first.line_with("registered").await;

    let other = copy_of_demo_model();
    let path = other.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n")).unwrap();
    let (status, output) = run_worker(&worker_args(grpc, other.path()), &[]).await;
    assert!(!status.success(), "{output}");
    assert!(output.contains("checkpoint"), "{output}");
    drop((first, coordinator));
}

#[tokio::test]
async fn a_worker_of_an_unknown_model_or_other_numerics() {
    let data = tempfile::tempdir().unwrap();
    let (coordinator, addresses) = coordinator(data.path()).await;
    let grpc = addresses["grpc"].as_str().unwrap();
    let args = worker_args(grpc, &demo_model());
    let (status, output) = run_worker(&args, &["--numerics", "exact"]).await;
    assert!(!status.success() && output.contains("exact"), "{output}");
    let args: Vec<_> = args.iter().map(|word| word.replace("demo=", "stranger=")).collect();
    let (status, output) = run_worker(&args, &[]).await;
    assert!(!status.success() && output.contains("stranger"), "{output}");
    drop(coordinator);
}

#[tokio::test]
async fn a_worker_of_another_version() {
    let data = tempfile::tempdir().unwrap();
    let (coordinator, addresses) = coordinator(data.path()).await;
    let grpc = addresses["grpc"].as_str().unwrap();
    let mut client = ClusterClient::connect(format!("http://{grpc}")).await.unwrap();
    let request = RegisterRequest {
        version: "0.0.1-other".to_owned(),
        model: "demo".to_owned(),
        checkpoint_fingerprint: "0".repeat(64),
        numerics: "official".to_owned(),
        control_address: "127.0.0.1:1".to_owned(),
        data_address: "127.0.0.1:2".to_owned(),
        device: Some(Device { kind: "cpu".to_owned(), ..Device::default() }),
        pid: 1,
        world_size: 2,
    };
    let refusal = client.register(request).await.expect_err("a refusal");
    assert_eq!(refusal.code(), tonic::Code::FailedPrecondition);
    for version in ["0.0.1-other", env!("CARGO_PKG_VERSION")] {
        assert!(refusal.message().contains(version), "{}", refusal.message());
    }
    drop(coordinator);
}

#[tokio::test]
async fn a_worker_without_a_checkpoint_names_the_folder() {
    let empty = tempfile::tempdir().unwrap();
    let (status, output) = run_worker(&worker_args("127.0.0.1:1", empty.path()), &[]).await;
    assert!(!status.success(), "{output}");
    assert!(output.contains(empty.path().to_str().unwrap()), "{output}");
}
