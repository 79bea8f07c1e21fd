use std::time::Duration;

use futures::StreamExt as _;
use switchyard_moe::ids::GroupEpoch;
use switchyard_proto::worker::{RankBatch, SampledToken, StepOutput};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::group::{KvBytes, RankError, RankStream};
use super::request::{
    FinishReason, GenerateEvent, GenerateRequest, Generation, Priority, SamplingParams,
};
use super::*;

const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// An engine whose one rank is played by the test.
struct Fixture {
    handle: Handle,
    remote: Remote,
    shutdown: CancellationToken,
    engine: JoinHandle<()>,
}

/// Makes an output wrong.
type Spoil = fn(&mut StepOutput);

/// The other end of a rank's streams.
struct Rank {
    batches: mpsc::Receiver<RankBatch>,
    outputs: mpsc::Sender<Result<StepOutput, RankError>>,
}

fn limits() -> Limits {
    Limits {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 1_024,
        num_blocks: 16,
        max_waiting: 4,
    }
}

impl Fixture {
    fn start() -> Self {
        let limits = limits();
        let (engine, handle, remote) = Engine::new(Options {
            model: ModelId::new("m"),
            limits,
            step_deadline: STEP_DEADLINE,
            drain_timeout: Duration::from_secs(5),
        });
        let shutdown = CancellationToken::new();
        let engine = tokio::spawn(engine.run(shutdown.clone(), CancellationToken::new()));
        Self { handle, remote, shutdown, engine }
    }

    /// Hands over a group of `world_size` ranks.
    async fn form(&self, epoch: u64, world_size: usize) -> Vec<Rank> {
        let mut ranks = Vec::new();
        let mut streams = Vec::new();
        for _ in 0..world_size {
            let (batches, received) = mpsc::channel(2);
            let (outputs, sent) = mpsc::channel(2);
            let outputs_stream = ReceiverStream::new(sent).boxed();
            streams.push(RankStream { batches, outputs: outputs_stream });
            ranks.push(Rank { batches: received, outputs });
        }
        let group = Group {
            epoch: GroupEpoch(epoch),
            limits: limits(),
            kv: KvBytes::default(),
            ranks: streams,
        };
        self.remote.command(Command::Serve(group)).await;
        let mut status = self.handle.watch();
        status.wait_for(|status| status.epoch == GroupEpoch(epoch)).await.unwrap();
        ranks
    }

    async fn submit(&self, max_tokens: u32) -> Generation {
        self.handle.submit(request(max_tokens)).await.unwrap()
    }

    async fn reason_of(&mut self, epoch: u64) -> String {
        self.remote.failure(GroupEpoch(epoch)).await.reason
    }
}

impl Rank {
    async fn receive(&mut self) -> RankBatch {
        timeout(Duration::from_secs(1), self.batches.recv()).await.unwrap().unwrap()
    }

    /// Answers a batch with token 7 for every sample.
    async fn answer(&self, batch: &RankBatch) {
        self.outputs.send(Ok(output(batch))).await.unwrap();
    }

    /// Answers whatever comes.
    async fn work(mut self) {
        while let Some(batch) = self.batches.recv().await {
            sleep(Duration::from_millis(5)).await;
            if self.outputs.send(Ok(output(&batch))).await.is_err() {
                return;
            }
        }
    }
}

fn request(max_tokens: u32) -> GenerateRequest {
    let sampling = SamplingParams {
        temperature: 0.5,
        top_p: 0.9,
        seed: 11,
        choice: 2,
        logprobs: true,
        num_top_logprobs: 1,
        ..SamplingParams::default()
    };
    GenerateRequest {
        prompt: vec![1, 2, 3],
        sampling,
        max_tokens,
        stop_token_ids: vec![],
        constraint: None,
        priority: Priority::Interactive,
    }
}

fn output(batch: &RankBatch) -> StepOutput {
    let samples = batch.chunks.iter().filter(|chunk| chunk.samples).map(|chunk| {
        let num_tokens = match chunk.tokens.as_ref().unwrap() {
            switchyard_proto::worker::sequence_chunk::Tokens::TokenIds(ids) => ids.ids.len() as u32,
            switchyard_proto::worker::sequence_chunk::Tokens::LastSample(_) => 1,
        };
        SampledToken {
            sequence_id: chunk.sequence_id,
            position: chunk.first_position + num_tokens,
            token_id: 7,
            logprob: -0.5,
            top_logprobs: vec![],
        }
    });
    StepOutput {
        epoch: batch.epoch,
        step: batch.step,
        samples: samples.collect(),
        ..StepOutput::default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_step_is_sent_before_the_first_is_over() {
    let fixture = Fixture::start();
    let mut ranks = fixture.form(1, 1).await;
    let mut generation = fixture.submit(2).await;
    let first = ranks[0].receive().await;
    let second = ranks[0].receive().await;
    let start = first.chunks[0].start.clone().unwrap();
    assert_eq!(start.prompt_len, 3);
    assert_eq!(second.chunks[0].start, None, "it is told once");
    let sampling = start.sampling.unwrap();
    assert_eq!((first.epoch, first.step, second.step), (1, 1, 2));
    assert_eq!((sampling.seed, sampling.choice, sampling.temperature), (11, 2, 0.5));
    ranks[0].answer(&first).await;
    let token = generation.next().await.unwrap();
    assert!(matches!(token, GenerateEvent::Token(token) if token.logprob == Some(-0.5)));
    ranks[0].answer(&second).await;
    assert!(matches!(generation.next().await, Some(GenerateEvent::Token(_))));
    let finished = GenerateEvent::Finished(FinishReason::Length);
    assert_eq!(generation.next().await, Some(finished));
    assert_eq!(generation.next().await, None);
    // The rank is told to forget it.
    assert_eq!(ranks[0].receive().await.released_sequence_ids, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_sample_put_off_counts_before_the_other_ranks_are_done() {
    let fixture = Fixture::start();
    let mut ranks = fixture.form(1, 2).await;
    let mut generation = fixture.submit(4).await;
    let first = [ranks[0].receive().await, ranks[1].receive().await];
    let second = [ranks[0].receive().await, ranks[1].receive().await];
    // The sequence's rank is a step ahead of the other, and puts off the second sample.
    ranks[0].answer(&first[0]).await;
    let put_off =
        StepOutput { deferred_sequence_ids: vec![1], samples: Vec::new(), ..output(&second[0]) };
    ranks[0].outputs.send(Ok(put_off)).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    ranks[1].answer(&first[1]).await;
    // So the third step, planned only now, is for the second position again.
    let third = [ranks[0].receive().await, ranks[1].receive().await];
    let mut again = output(&third[0]);
    assert_eq!(again.samples[0].position, 5);
    again.samples[0].position = 4;
    ranks[1].answer(&second[1]).await;
    let fourth = [ranks[0].receive().await, ranks[1].receive().await];
    ranks[0].outputs.send(Ok(again)).await.unwrap();
    ranks[1].answer(&third[1]).await;
    ranks[0].answer(&fourth[0]).await;
    ranks[1].answer(&fourth[1]).await;
    for rank in ranks {
        tokio::spawn(rank.work());
    }
    for _ in 0..4 {
        let token = timeout(Duration::from_secs(1), generation.next()).await.unwrap();
        assert!(matches!(token, Some(GenerateEvent::Token(_))), "{token:?}");
    }
    let finished = GenerateEvent::Finished(FinishReason::Length);
    assert_eq!(generation.next().await, Some(finished));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_hangs_up_frees_its_blocks_within_a_step() {
    let fixture = Fixture::start();
    let mut ranks = fixture.form(1, 1).await;
    let generation = fixture.submit(500).await;
    let first = ranks[0].receive().await;
    ranks[0].receive().await;
    drop(generation);
    // Two steps are in flight; the one after the first of them releases.
    sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.handle.status().ranks[0].free, 16);
    ranks[0].answer(&first).await;
    let third = ranks[0].receive().await;
    assert_eq!((third.step, third.released_sequence_ids), (3, vec![1]));
    assert!(third.chunks.is_empty());
    assert_eq!(fixture.handle.status().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_up_nobody_and_no_blocks() {
    let fixture = Fixture::start();
    let mut ranks = fixture.form(1, 1).await;
    tokio::spawn(ranks.remove(0).work());
    let slow = fixture.submit(800).await;
    let mut quick = fixture.submit(20).await;
    while quick.next().await.is_some() {}
    let mut status = fixture.handle.watch();
    status.wait_for(|status| status.running == 0).await.unwrap();
    assert_eq!(fixture.handle.status().ranks[0].free, 16);
    let events: Vec<_> =
        futures::stream::unfold(slow, |mut slow| async { Some((slow.next().await?, slow)) })
            .collect()
            .await;
    assert_eq!(events.len(), 801);
}

#[tokio::test(start_paused = true)]
async fn outputs_that_do_not_fit_their_batch_name_the_rank() {
    let wrong: [(&str, Spoil); 5] = [
        ("returned 0 samples instead of 1", |output| output.samples.clear()),
        ("for sequence 9 position 3 instead of", |output| output.samples[0].sequence_id = 9),
        ("for sequence 1 position 4 instead of", |output| output.samples[0].position = 4),
        ("answered for another epoch than 1", |output| output.epoch = 2),
        ("answered for a step that it was not asked for", |output| output.step = 2),
    ];
    for (words, spoil) in wrong {
        let mut fixture = Fixture::start();
        let mut ranks = fixture.form(1, 2).await;
        let _generation = fixture.submit(5).await;
        let batch = ranks[0].receive().await;
        let mut output = output(&batch);
        spoil(&mut output);
        ranks[0].outputs.send(Ok(output)).await.unwrap();
        let reason = fixture.reason_of(1).await;
        assert!(reason.contains("rank 0") && reason.contains(words), "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_step_names_the_ranks_that_owe_it() {
    let mut fixture = Fixture::start();
    let mut ranks = fixture.form(1, 3).await;
    let _generation = fixture.submit(5).await;
    for rank in [0, 2] {
        let batch = ranks[rank].receive().await;
        ranks[rank].answer(&batch).await;
    }
    let begun = Instant::now();
    let reason = fixture.reason_of(1).await;
    assert_eq!(reason, "rank 1 gave no output for step 1 within 30000 ms");
    assert_eq!(begun.elapsed().as_secs(), STEP_DEADLINE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_in_the_words_of_those_who_know() {
    let mut fixture = Fixture::start();
    let mut ranks = fixture.form(1, 2).await;
    let _generation = fixture.submit(5).await;
    drop(ranks.remove(1));
    let words = "rank 1 stopped before step 1 layer 0 dispatch; rank 0 waited for it";
    let told = Err(RankError::Failed(words.to_owned()));
    ranks[0].outputs.send(told).await.unwrap();
    let failure = fixture.remote.failure(GroupEpoch(1)).await;
    assert!(failure.reason.starts_with(words), "{}", failure.reason);
    assert_eq!(failure.suspects, [switchyard_moe::ids::EpRank(1)]);
    assert!(matches!(
        fixture.handle.status().phase,
        Phase::Recovering { reason } if reason.starts_with(words)
    ));
}

#[tokio::test(start_paused = true)]
async fn sequences_that_take_down_every_group_fail() {
    let mut fixture = Fixture::start();
    let mut generation = None;
    for epoch in 1..=FRUITLESS_GROUPS_MAX as u64 {
        let mut ranks = fixture.form(epoch, 1).await;
        if generation.is_none() {
            generation = Some(fixture.submit(5).await);
        }
        ranks[0].receive().await;
        drop(ranks);
        fixture.reason_of(epoch).await;
    }
    let event = generation.unwrap().next().await;
    assert!(matches!(event, Some(GenerateEvent::Failed(GenerateError::GroupLost(_)))), "{event:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_and_a_long_request_are_refused() {
    let fixture = Fixture::start();
    let _ranks = fixture.form(1, 1).await;
    let too_long = fixture.handle.submit(request(1_022)).await;
    let expected = SubmitError::TooLong { needed: 1_025, available: 1_024 };
    assert_eq!(too_long.err(), Some(expected));
    // Two steps are in flight and none is over: eight sequences run at most, four wait.
    let mut generations = Vec::new();
    let refused = loop {
        match fixture.handle.submit(request(5)).await {
            Ok(generation) => generations.push(generation),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SubmitError::QueueFull { waiting: 4, .. }), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_has_stopped_says_so() {
    let fixture = Fixture::start();
    let _ranks = fixture.form(1, 1).await;
    let mut generation = fixture.submit(5).await;
    fixture.shutdown.cancel();
    assert_eq!(generation.next().await, Some(GenerateEvent::Failed(GenerateError::ShuttingDown)));
    fixture.engine.await.unwrap();
    let refused = fixture.handle.submit(request(5)).await;
    assert!(matches!(refused, Err(SubmitError::NotReady { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stall_counts_from_when_work_arrived() {
    let fixture = Fixture::start();
    let _ranks = fixture.form(1, 1).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(fixture.handle.status().stalled_for(Instant::now()), None);
    let _generation = fixture.submit(5).await;
    sleep(Duration::from_secs(7)).await;
    let stalled = fixture.handle.status().stalled_for(Instant::now());
    assert_eq!(stalled.map(|time| time.as_secs()), Some(7));
}
