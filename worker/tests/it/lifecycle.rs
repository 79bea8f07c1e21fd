//! A worker's life: binding, registering, being refused, asked to exit, or left by its coordinator.

use std::path::Path;

use switchyard_proto::worker::DescribeRequest;
use switchyard_worker::server::{Error, VERSION};
use switchyard_worker::{Options, Worker};
use tonic::Status;

use super::cluster::{
    Coordinator, Remote, drain, options, refusing, restart, run_steps, serve, shape, start,
};

#[tokio::test]
async fn a_registration_says_who_and_where() {
    let mut coordinator = Coordinator::start().await;
    let worker = Remote::start(options(coordinator.address, 3)).await;
    let (request, _lease) = coordinator.registrations.recv().await.unwrap();
    assert_eq!((request.version.as_str(), request.model.as_str()), (VERSION, "fake"));
    assert_eq!((request.numerics.as_str(), request.world_size), ("exact", 3));
    assert_eq!(request.checkpoint_fingerprint, shape().fingerprint);
    assert_eq!(request.data_address, worker.data_address);
    assert_eq!(request.pid, std::process::id());
    let device = request.device.unwrap();
    assert_eq!((device.kind.as_str(), device.threads), ("cpu", 1));
}

#[tokio::test]
async fn a_refusal_ends_the_worker_with_the_coordinators_words() {
    let words = "worker is version 9, the coordinator is version 8";
    let coordinator = refusing(Status::failed_precondition(words)).await;
    let mut worker = Remote::start(options(coordinator.address, 1)).await;
    let error = worker.end().await.unwrap_err();
    let Error::Registration(error) = error else { panic!("{error}") };
    let expected =
        format!("the coordinator at http://{}/ refused this worker: {words}", coordinator.address);
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_worker_that_is_put_out_ends() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = Remote::start(options(coordinator.address, 1)).await;
    let (_, lease) = coordinator.registrations.recv().await.unwrap();
    lease.send(Err(Status::failed_precondition("it does not answer"))).await.unwrap();
    let error = worker.end().await.unwrap_err();
    let Error::Registration(error) = error else { panic!("{error}") };
    assert!(error.to_string().ends_with("put this worker out: it does not answer"), "{error}");
}

#[tokio::test]
async fn a_worker_outlives_its_coordinator_with_its_weights() {
    let mut coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 1).await;
    let (_, _lease) = coordinator.registrations.recv().await.unwrap();
    let mut steps = serve(&mut workers, 1).await;
    run_steps(&mut steps, 1, 1).await;
    drop(steps);
    let mut coordinator = restart(coordinator).await;
    let (request, _lease) = coordinator.registrations.recv().await.unwrap();
    assert_eq!(request.model, "fake");
    let described = workers[0].client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert!(described.loaded);
    assert_eq!(described.epoch, 1);
}

#[tokio::test]
async fn a_worker_exits_when_it_is_asked_to() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = Remote::start(options(coordinator.address, 1)).await;
    let (_, lease) = coordinator.registrations.recv().await.unwrap();
    let mut steps = serve(std::slice::from_mut(&mut worker), 1).await;
    run_steps(&mut steps, 1, 1).await;
    lease.send(Ok(drain())).await.unwrap();
    worker.end().await.unwrap();
    assert!(worker.execute().await.is_err());
}

#[tokio::test]
async fn a_shutdown_ends_the_worker_while_nobody_answers() {
    let coordinator = Coordinator::start().await;
    let address = coordinator.address;
    drop(coordinator);
    let mut worker = Remote::start(options(address, 1)).await;
    worker.shutdown.cancel();
    worker.end().await.unwrap();
}

#[tokio::test]
async fn nothing_is_announced_when_something_is_wrong() {
    let check = |change: fn(&mut Options, &Path)| async move {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options("127.0.0.1:1".parse().unwrap(), 1);
        change(&mut options, dir.path());
        Worker::bind(options).await.unwrap_err()
    };
    let error = check(|options, dir| options.model_dir = dir.join("absent")).await;
    assert!(matches!(&error, Error::Checkpoint(_)), "{error:?}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut in_use = options("127.0.0.1:1".parse().unwrap(), 1);
    in_use.model_dir = micro();
    in_use.data_addr = address;
    let error = Worker::bind(in_use).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address} (data plane)"));

    // No machine has so many GPUs.
    let mut absent = options("127.0.0.1:1".parse().unwrap(), 1);
    absent.model_dir = micro();
    absent.device = "cuda:4095".parse().unwrap();
    let error = Worker::bind(absent).await.unwrap_err();
    assert!(matches!(&error, Error::Device(_)), "{error:?}");

    let mut anywhere = options("127.0.0.1:1".parse().unwrap(), 1);
    anywhere.model_dir = micro();
    anywhere.control_addr = "0.0.0.0:0".parse().unwrap();
    let error = Worker::bind(anywhere.clone()).await.unwrap_err();
    assert!(matches!(error, Error::AdvertiseHost(_)), "{error}");
    anywhere.advertise_host = Some("worker-0.example".to_owned());
    let worker = Worker::bind(anywhere).await.unwrap();
    assert!(worker.control_address().starts_with("worker-0.example:"));
}

/// A small checkpoint that is kept in the repository.
pub(crate) fn micro() -> std::path::PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/micro/q")).to_owned()
}
