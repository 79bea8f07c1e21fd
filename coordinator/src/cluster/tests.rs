mod chaos;

use std::time::Duration;

use switchyard_moe::capacity::{self, CacheFormat};
use switchyard_moe::config::BLOCK_SIZE;
use switchyard_moe::ids::EpRank;
use switchyard_proto::cluster::cluster_server::Cluster as _;
use switchyard_proto::cluster::register_event::Event as Lease;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request};

use super::simulation::{Simulation, WorkerOptions, answer, group_options, request};
use super::*;
use crate::engine::request::{FinishReason, GenerateError, GenerateEvent, Generation, SubmitError};
use crate::engine::status::{GroupStatus, Phase};

/// Everything that a generation yields.
async fn collect(mut generation: Generation) -> (Vec<u32>, Option<GenerateEvent>) {
    let mut tokens = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            GenerateEvent::Token(token) => tokens.push(token.token_id),
            GenerateEvent::Finished(_) | GenerateEvent::Failed(_) => return (tokens, Some(event)),
        }
    }
    (tokens, None)
}

async fn serves(simulation: &Simulation, prompt: Vec<u32>) {
    let request = request(prompt, 30, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    let end = Some(GenerateEvent::Finished(FinishReason::Length));
    assert_eq!(collect(generation).await, (answer(&request), end));
}

fn reason(simulation: &Simulation) -> String {
    simulation.handle.status().phase.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_group_forms_when_all_workers_have_registered() {
    let simulation = Simulation::start(1, group_options());
    let mut phases = vec![simulation.handle.status().phase];
    let mut watch = simulation.handle.watch();
    let watching = tokio::spawn(async move {
        while *phases.last().unwrap() != Phase::Ready {
            watch.changed().await.unwrap();
            let phase = watch.borrow().phase.clone();
            if phase != *phases.last().unwrap() {
                phases.push(phase);
            }
        }
        phases
    });
    let _first = simulation.start_worker(WorkerOptions::new(2)).await;
    let waiting = |phase: &Phase| *phase == Phase::WaitingForWorkers { have: 1, want: Some(2) };
    simulation.reaches(waiting).await;
    let refused = simulation.handle.submit(request(vec![1], 1, vec![])).await;
    assert!(
        matches!(&refused, Err(SubmitError::NotReady { reason, .. }) if reason == "1 of 2 workers have registered"),
        "{refused:?}"
    );
    let _second = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    let phases = watching.await.unwrap();
    let loading = |phase: &&Phase| matches!(phase, Phase::Loading { .. });
    assert!(phases.iter().filter(loading).count() > 3, "{phases:?}");
    assert_eq!(phases[phases.len() - 2], Phase::Forming);
    serves(&simulation, vec![1, 2, 3]).await;
    assert_eq!(simulation.handle.status().epoch.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_differs_is_refused() {
    let simulation = Simulation::start(2, group_options());
    let good = simulation.start_worker(WorkerOptions::new(2)).await;
    let check = async |change: &dyn Fn(&mut switchyard_proto::cluster::RegisterRequest),
                       code,
                       words: &str| {
        let mut info = good.info.clone();
        "other:1".clone_into(&mut info.control_address);
        change(&mut info);
        let Err(status) = simulation.registrar.register(Request::new(info)).await else {
            panic!("accepted instead of {words}");
        };
        assert_eq!(status.code(), code);
        assert!(status.message().contains(words), "{}", status.message());
    };
    let refused = Code::FailedPrecondition;
    check(&|info| info.model = "other".to_owned(), Code::NotFound, "this coordinator serves sim")
        .await;
    check(
        &|info| info.version = "9.9.9".to_owned(),
        refused,
        "other:1, pid 101 is switchyard 9.9.9",
    )
    .await;
    check(&|info| info.numerics = "exact".to_owned(), refused, "computes in \"exact\"").await;
    check(
        &|info| info.checkpoint_fingerprint = "beef".to_owned(),
        refused,
        "worker other:1, pid 101 has beef, worker worker-1:1, pid 101 has f00d",
    )
    .await;
    check(
        &|info| info.device.as_mut().unwrap().kind = "cuda".to_owned(),
        refused,
        "other:1, pid 101 computes on cuda, worker worker-1:1, pid 101 on cpu",
    )
    .await;
    check(&|info| info.world_size = 3, refused, "expects 3 workers").await;
    check(&|info| info.world_size = 0, refused, "group of 0 workers").await;
}

#[tokio::test(start_paused = true)]
async fn the_first_checkpoint_counts_until_everybody_has_left() {
    let simulation = Simulation::start(12, group_options());
    let first = simulation.start_worker(WorkerOptions::new(2)).await;
    let mut info = first.info.clone();
    "beef".clone_into(&mut info.checkpoint_fingerprint);
    assert!(simulation.registrar.register(Request::new(info.clone())).await.is_err());
    let alone = |phase: &Phase| *phase == Phase::WaitingForWorkers { have: 1, want: Some(2) };
    simulation.reaches(alone).await;
    first.kill();
    let nobody = |phase: &Phase| *phase == Phase::WaitingForWorkers { have: 0, want: None };
    simulation.reaches(nobody).await;
    let lease = simulation.registrar.register(Request::new(info.clone())).await;
    drop(lease.unwrap());
    // Once a group has served, its sequences need the same weights to go on.
    let second = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    second.kill();
    simulation.reaches(|phase| matches!(phase, Phase::Unavailable { .. })).await;
    assert!(simulation.registrar.register(Request::new(info)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_group_has_the_blocks_of_its_kind_of_device() {
    let mut options = group_options();
    let cpu_bytes = |config| capacity::block_bytes(config, CacheFormat::Bf16);
    options.cache.kv_cache_bytes = 4 * cpu_bytes(&options.config) as u64;
    options.cache.max_model_len = Some(100_000);
    let gpu_bytes = capacity::block_bytes(&options.config, CacheFormat::Fp8);
    let gpu_blocks = 4 * cpu_bytes(&options.config) / gpu_bytes;
    assert!(gpu_blocks > 4, "{gpu_blocks}");
    for (device_kind, num_blocks) in [("cpu", 4), ("cuda", gpu_blocks)] {
        let simulation = Simulation::start(13, options.clone());
        assert_eq!(simulation.handle.status().max_model_len, 4 * BLOCK_SIZE);
        let worker = WorkerOptions { device_kind, ..WorkerOptions::new(1) };
        let _worker = simulation.start_worker(worker).await;
        simulation.is_ready().await;
        serves(&simulation, vec![1, 2, 3]).await;
        let status = simulation.handle.status();
        assert_eq!(status.ranks[0].total, num_blocks, "{device_kind}");
        assert_eq!(status.max_model_len, num_blocks * BLOCK_SIZE, "{device_kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn survivors_go_on_and_a_late_worker_joins() {
    let simulation = Simulation::start(3, group_options());
    let first = simulation.start_worker(WorkerOptions::new(2)).await;
    let second = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    let request = request(vec![5; 40], 400, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    let answered = tokio::spawn(collect(generation));
    sleep(Duration::from_millis(300)).await;
    second.kill();
    simulation.reaches(|phase| matches!(phase, Phase::Recovering { .. })).await;
    assert!(reason(&simulation).contains("rank 1"), "{}", reason(&simulation));
    simulation.is_ready().await;
    assert_eq!(simulation.handle.status().world_size, 1);
    sleep(Duration::from_millis(300)).await;
    let third = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.reaches(|phase| matches!(phase, Phase::Recovering { .. })).await;
    assert!(reason(&simulation).contains("worker-3:1, pid 103) joins"), "{}", reason(&simulation));
    simulation.is_ready().await;
    assert_eq!(simulation.handle.status().world_size, 2);
    assert_eq!(answered.await.unwrap().0, answer(&request));
    assert_eq!(simulation.handle.status().epoch.0, 3);
    assert!(first.is_alive() && third.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_replacement_within_the_grace_takes_the_lost_rank() {
    let simulation = Simulation::start(4, group_options());
    let first = simulation.start_worker(WorkerOptions::new(2)).await;
    let _second = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    first.kill();
    simulation.reaches(|phase| matches!(phase, Phase::Recovering { .. })).await;
    // Requests that arrive meanwhile are queued, not refused.
    let request = request(vec![9; 10], 20, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    let _third = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    assert_eq!(simulation.handle.status().world_size, 2);
    assert_eq!(collect(generation).await.0, answer(&request));
}

#[tokio::test(start_paused = true)]
async fn a_hung_worker_is_named_and_put_out() {
    let simulation = Simulation::start(5, group_options());
    let _first = simulation.start_worker(WorkerOptions::new(2)).await;
    let second = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    let request = request(vec![5; 40], 200, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    let answered = tokio::spawn(collect(generation));
    sleep(Duration::from_millis(100)).await;
    second.hang();
    simulation.reaches(|phase| matches!(phase, Phase::Recovering { .. })).await;
    assert!(reason(&simulation).contains("rank 1 did not reach step"), "{}", reason(&simulation));
    simulation.is_ready().await;
    assert_eq!(simulation.handle.status().world_size, 1);
    let end = second.lease_end.borrow().clone().unwrap();
    assert!(end.contains("does not answer"), "{end}");
    assert_eq!(answered.await.unwrap().0, answer(&request));
}

/// Memory that holds the experts of the fixture in two ranks, but not in one.
fn tight_memory() -> u64 {
    let config = simulation::config();
    let one = (1..).find(|&bytes| limits::min_world_size(&config, bytes) == 1).unwrap();
    assert_eq!(limits::min_world_size(&config, one - 1), 2);
    one - 1
}

#[tokio::test(start_paused = true)]
async fn too_few_survivors_wait_and_then_give_up() {
    let simulation = Simulation::start(6, group_options());
    let options = WorkerOptions { memory_bytes: tight_memory(), ..WorkerOptions::new(2) };
    let _first = simulation.start_worker(options.clone()).await;
    let second = simulation.start_worker(options.clone()).await;
    simulation.is_ready().await;
    let request = request(vec![5; 40], 5_000, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    second.kill();
    let killed = Instant::now();
    simulation.reaches(|phase| matches!(phase, Phase::Unavailable { .. })).await;
    let text = reason(&simulation);
    assert!(
        text.contains("rank 1") && text.contains("1 workers are left, the model needs 2"),
        "{text}"
    );
    let refused = simulation.handle.submit(request.clone()).await;
    assert!(matches!(refused, Err(SubmitError::NotReady { .. })), "{refused:?}");
    let (tokens, end) = collect(generation).await;
    assert!(killed.elapsed() >= Timeouts::default().recovery);
    assert!(!tokens.is_empty() && answer(&request).starts_with(&tokens));
    assert!(
        matches!(&end, Some(GenerateEvent::Failed(GenerateError::GroupLost(reason))) if reason.contains("rank 1")),
        "{end:?}"
    );
    // A replacement begins anew.
    let _third = simulation.start_worker(options).await;
    simulation.is_ready().await;
    serves(&simulation, vec![4; 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_load_is_told_why() {
    let simulation = Simulation::start(7, group_options());
    let fault = "model-2.safetensors: tensor layers.0.ffn.experts.3.w1.weight is missing";
    let options = WorkerOptions { load_fault: Some(fault.to_owned()), ..WorkerOptions::new(1) };
    let broken = simulation.start_worker(options).await;
    let mut end = broken.lease_end.subscribe();
    let end = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(end.contains(fault) && end.contains("loading failed"), "{end}");
    let _good = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    serves(&simulation, vec![1]).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_sequences_finish_and_workers_go() {
    let simulation = Simulation::start(8, group_options());
    let worker = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    let request = request(vec![5; 40], 100, vec![]);
    let generation = simulation.handle.submit(request.clone()).await.unwrap();
    simulation.shutdown.cancel();
    assert_eq!(collect(generation).await.0, answer(&request));
    simulation.service.await.unwrap().unwrap();
    let mut end = worker.lease_end.subscribe();
    let end = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(end, "the coordinator is shutting down");
    let late = simulation.registrar.register(Request::new(worker.info.clone())).await;
    assert_eq!(late.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn shutdown_fails_what_does_not_finish_in_time() {
    let simulation = Simulation::start(9, group_options());
    let _worker = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    let request = request(vec![5; 40], 1_000_000, vec![]);
    let refused = simulation.handle.submit(request.clone()).await;
    assert!(matches!(refused, Err(SubmitError::TooLong { .. })), "{refused:?}");
    let max_tokens = simulation.handle.status().max_model_len as u32 - 40;
    let request = engine::request::GenerateRequest { max_tokens, ..request };
    let generation = simulation.handle.submit(request).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    simulation.shutdown.cancel();
    let (_, end) = collect(generation).await;
    if end != Some(GenerateEvent::Finished(FinishReason::Length)) {
        assert_eq!(end, Some(GenerateEvent::Failed(GenerateError::ShuttingDown)));
        assert!(begun.elapsed() >= Timeouts::default().drain);
    }
    simulation.service.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn workers_stay_when_another_coordinator_takes_over() {
    let options = ModelGroupOptions { farewell: Farewell::Stay, ..group_options() };
    let simulation = Simulation::start(8, options);
    let worker = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    let mut end = worker.lease_end.subscribe();
    simulation.shutdown.cancel();
    simulation.service.await.unwrap().unwrap();
    // An error that a worker does not take for the last word, and no request to exit.
    let end = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(end, "this coordinator stops; another takes over");
    let late = simulation.registrar.register(Request::new(worker.info.clone())).await;
    assert_eq!(late.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_cut_ends_everything_at_once() {
    let simulation = Simulation::start(9, group_options());
    let _worker = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    let max_tokens = simulation.handle.status().max_model_len as u32 - 40;
    let request = request(vec![5; 40], max_tokens, vec![]);
    let generation = simulation.handle.submit(request).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    simulation.cut.cancel();
    let (_, end) = collect(generation).await;
    assert_eq!(end, Some(GenerateEvent::Failed(GenerateError::ShuttingDown)));
    simulation.service.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_group_sleeps() {
    let simulation = Simulation::start(10, group_options());
    let _worker = simulation.start_worker(WorkerOptions::new(1)).await;
    simulation.is_ready().await;
    serves(&simulation, vec![1, 2]).await;
    sleep(Duration::from_secs(1)).await;
    // The engine publishes its status whenever it has been awake.
    let mut watch = simulation.handle.watch();
    watch.borrow_and_update();
    sleep(Duration::from_secs(3_600)).await;
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_registered_worker_learns_its_id() {
    let simulation = Simulation::start(11, group_options());
    let worker = simulation.start_worker(WorkerOptions::new(5)).await;
    let mut info = worker.info.clone();
    "other:1".clone_into(&mut info.control_address);
    let lease = simulation.registrar.register(Request::new(info)).await.unwrap();
    let event = futures::StreamExt::next(&mut lease.into_inner()).await.unwrap().unwrap();
    assert!(
        matches!(event.event, Some(Lease::Registered(registered)) if registered.worker_id == 2)
    );
    // The stream is dropped by now, and with it the lease.
    let alone = |phase: &Phase| *phase == Phase::WaitingForWorkers { have: 1, want: Some(5) };
    simulation.reaches(alone).await;
}

#[tokio::test(start_paused = true)]
async fn status_tells_who_the_ranks_are_and_who_was_lost() {
    let simulation = Simulation::start(14, group_options());
    let _first = simulation.start_worker(WorkerOptions::new(2)).await;
    let second = simulation.start_worker(WorkerOptions::new(2)).await;
    simulation.is_ready().await;
    serves(&simulation, vec![1, 2, 3]).await;
    let status = simulation.handle.status();
    let told = |status: &GroupStatus| -> Vec<(String, f32, bool)> {
        let members = status.members.iter();
        members.map(|member| (member.address.clone(), member.loaded, member.is_lost)).collect()
    };
    let addresses = ["worker-1:1", "worker-2:1"].map(|address| (address.to_owned(), 1.0, false));
    assert_eq!(told(&status), addresses);
    assert_eq!(status.members[0].device, "cpu");
    assert!(status.faults.is_empty());
    let rates = status.activity.rates(Instant::now());
    assert!(rates.generated_tokens > 0.0 && rates.answers > 0.0, "{rates:?}");
    assert!(rates.prefill_tokens > 0.0 && rates.step_seconds.is_some(), "{rates:?}");

    second.kill();
    simulation.reaches(|phase| !matches!(phase, Phase::Ready)).await;
    simulation.is_ready().await;
    let status = simulation.handle.status();
    assert_eq!(told(&status), addresses[..1]);
    let culprit = status.faults.iter().find(|fault| fault.ranks == [EpRank(1)]);
    let culprit = culprit.unwrap_or_else(|| panic!("{:?}", status.faults));
    assert!(culprit.message.contains("rank 1"), "{culprit:?}");
}
