//! The worker's service: groups, steps, and what happens when somebody dies.

use std::time::Duration;

use switchyard_proto::worker::{DescribeRequest, DrainRequest};
use tonic::Code;

use super::cluster::{
    Coordinator, HANGS, NUM_EXPERTS, NUM_LAYERS, Remote, batch, expect_refusal, form, is_ready,
    load, options, placement, run_steps, serve, start,
};

#[tokio::test]
async fn steps_pass_through_every_rank_in_order() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 3).await;
    let placement = placement(NUM_LAYERS, NUM_EXPERTS, 3);
    for progress in load(&mut workers, &placement).await.unwrap() {
        assert!(is_ready(&progress));
        assert_eq!((progress.bytes_done, progress.bytes_total), (1000, 1000));
    }
    form(&mut workers, &placement, 1).await.unwrap();
    let mut steps = Vec::new();
    for worker in &mut workers {
        steps.push(worker.execute().await.unwrap());
    }
    // Two steps are sent before the first is answered; one rank has no work.
    for step in 1..=2 {
        steps[0].send(batch(1, step, &[7, 8])).await;
        steps[1].send(batch(1, step, &[])).await;
        steps[2].send(batch(1, step, &[9])).await;
    }
    for step in 1..=2 {
        let mut tokens = Vec::new();
        for rank in &mut steps {
            let output = rank.next().await.unwrap();
            assert_eq!((output.epoch, output.step), (1, step));
            tokens.extend(output.samples.iter().map(|sample| sample.token_id));
        }
        let position = step as u32;
        assert_eq!(tokens, [7000 + position, 8000 + position, 9000 + position]);
    }
    let described = workers[1].client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.model.as_str(), described.epoch, described.rank), ("fake", 1, 1));
    assert!(described.loaded);
}

#[tokio::test]
async fn survivors_name_the_dead_rank_and_the_next_epoch_works() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 4).await;
    let mut steps = serve(&mut workers, 1).await;
    run_steps(&mut steps, 1, 3).await;
    // Rank 2 dies in the middle of step 4.
    for (rank, stream) in steps.iter().enumerate() {
        let sequence = if rank == 2 { HANGS } else { 7 };
        stream.send(batch(1, 4, &[sequence])).await;
        stream.send(batch(1, 5, &[7])).await;
    }
    workers[2].kill();
    for (rank, stream) in steps.iter_mut().enumerate() {
        let status = stream.next().await.unwrap_err();
        if rank != 2 {
            assert_eq!(status.code(), Code::Unavailable, "rank {rank}: {status}");
            let expected =
                format!("rank 2 stopped before step 4 layer 0 dispatch; rank {rank} waited for it");
            assert_eq!(status.message(), expected);
        }
    }
    workers.remove(2);
    let mut steps = serve(&mut workers, 2).await;
    run_steps(&mut steps, 2, 3).await;
}

#[tokio::test]
async fn a_silent_rank_is_named_at_the_deadline() {
    let coordinator = Coordinator::start().await;
    let deadline = Duration::from_millis(200);
    let mut workers = Vec::new();
    for _ in 0..2 {
        let mut options = options(coordinator.address, 2);
        options.exchange_deadline = deadline;
        workers.push(Remote::start(options).await);
    }
    let mut steps = serve(&mut workers, 1).await;
    steps[0].send(batch(1, 1, &[7])).await;
    steps[1].send(batch(1, 1, &[HANGS])).await;
    let status = steps[0].next().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.message(),
        "rank 1 did not reach step 1 layer 0 dispatch within 200 ms; rank 0 waited for it"
    );
}

#[tokio::test]
async fn a_broken_stream_aborts_the_step_and_keeps_the_weights() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 2).await;
    let mut steps = serve(&mut workers, 1).await;
    run_steps(&mut steps, 1, 1).await;
    // Rank 0 waits for rank 1, which has no step, when the coordinator's stream to rank 0 breaks.
    let mut rank_1 = steps.pop().unwrap();
    let rank_0 = steps.pop().unwrap();
    rank_0.send(batch(1, 2, &[7])).await;
    drop(rank_0);
    rank_1.send(batch(1, 2, &[7])).await;
    let status = rank_1.next().await.unwrap_err();
    assert!(status.message().starts_with("rank 0 stopped before step 2"), "{status}");

    for worker in &mut workers {
        let described = worker.client.describe(DescribeRequest {}).await.unwrap().into_inner();
        assert!(described.loaded);
        assert_eq!(described.epoch, 1);
        let status = worker.execute().await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
    form(&mut workers, &placement(NUM_LAYERS, NUM_EXPERTS, 2), 2).await.unwrap();
}

#[tokio::test]
async fn a_stale_epoch_is_refused_with_both_epochs() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 1).await;
    let mut steps = serve(&mut workers, 5).await;
    let placement = placement(NUM_LAYERS, NUM_EXPERTS, 1);
    let stale = "epoch 5 is stale, this worker is in epoch 5";
    expect_refusal(form(&mut workers, &placement, 5).await, Code::FailedPrecondition, stale).await;
    // The refusal has not disturbed the group.
    run_steps(&mut steps, 5, 2).await;
    steps[0].send(batch(4, 3, &[7])).await;
    let status = steps[0].next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "epoch 4 is stale, this worker is in epoch 5");
}

#[tokio::test]
async fn a_newer_epoch_aborts_the_one_under_way() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 2).await;
    let mut old = serve(&mut workers, 1).await;
    // Rank 0 waits for a step that rank 1 never gets.
    old[0].send(batch(1, 1, &[7])).await;
    form(&mut workers, &placement(NUM_LAYERS, NUM_EXPERTS, 2), 2).await.unwrap();
    for stream in &mut old {
        let status = stream.next().await.unwrap_err();
        // Either its own end, or that of the peer that was told first.
        assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status}");
    }
    let mut steps = Vec::new();
    for worker in &mut workers {
        steps.push(worker.execute().await.unwrap());
    }
    run_steps(&mut steps, 2, 2).await;
}

#[tokio::test]
async fn wrong_messages_are_refused_by_field() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 1).await;
    let whole = placement(NUM_LAYERS, NUM_EXPERTS, 1);
    let early = form(&mut workers, &whole, 1).await;
    expect_refusal(early, Code::FailedPrecondition, "nothing is loaded; call Load first").await;
    let short = placement(NUM_LAYERS - 1, NUM_EXPERTS, 1);
    let refused = load(&mut workers, &short).await.map(drop);
    let message = "placement.layers: has 1, the model has 2";
    expect_refusal(refused, Code::InvalidArgument, message).await;

    load(&mut workers, &whole).await.unwrap();
    let mut other = whole.clone();
    other.layers[0].physical_to_logical.reverse();
    let message = "the worker has loaded rank 0 of 1, which is not rank 0 under the placement of \
                   epoch 1; call Load first";
    let refused = form(&mut workers, &other, 1).await;
    expect_refusal(refused, Code::FailedPrecondition, message).await;

    form(&mut workers, &whole, 1).await.unwrap();
    let mut steps = workers[0].execute().await.unwrap();
    let second = workers[0].execute().await.map(drop);
    let message = "the steps of epoch 1 already have a stream";
    expect_refusal(second, Code::FailedPrecondition, message).await;
    steps.send(batch(1, 2, &[])).await;
    let status = steps.next().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "step: 2 does not follow step 0 of epoch 1");
}

#[tokio::test]
async fn a_drain_lets_the_step_in_flight_end() {
    let coordinator = Coordinator::start().await;
    let mut workers = start(&coordinator, 2).await;
    let mut steps = serve(&mut workers, 1).await;
    steps[0].send(batch(1, 1, &[7])).await;
    workers[0].wait_for_steps(1).await;
    // Rank 0 is in the step and waits for rank 1.
    let mut draining = workers[0].client.clone();
    let request = DrainRequest { reason: "the test wants it".to_owned() };
    let drain = tokio::spawn(async move { draining.drain(request).await });
    steps[1].send(batch(1, 1, &[7])).await;
    assert_eq!(steps[0].next().await.unwrap().step, 1);
    assert_eq!(steps[1].next().await.unwrap().step, 1);
    drain.await.unwrap().unwrap();
    let status = steps[0].next().await.unwrap_err();
    assert_eq!(status.message(), "the worker has left the group: the test wants it");
    let status = workers[0].execute().await.map(drop).unwrap_err();
    assert_eq!(status.message(), "the worker is in no group; call FormGroup first");
}
