//! A real checkpoint behind the service: what is sampled does not depend on the number of workers.

use std::num::NonZeroUsize;

use switchyard_moe::ids::ModelId;
use switchyard_proto::worker::sequence_chunk::Tokens;
use switchyard_proto::worker::{self as proto, RankBatch, SampledToken};
use switchyard_worker::Worker;

use super::cluster::{Coordinator, Remote, Steps, form, is_ready, load, options, placement};
use super::lifecycle::micro;

/// Layers and routed experts of the checkpoint.
const NUM_LAYERS: usize = 4;
const NUM_EXPERTS: usize = 8;
const PROMPT_LEN: u32 = 23;
const NUM_DECODE_STEPS: u64 = 6;

async fn start(world_size: usize) -> (Coordinator, Vec<Remote>) {
    let coordinator = Coordinator::start().await;
    let mut workers = Vec::new();
    for _ in 0..world_size {
        let mut options = options(coordinator.address, world_size);
        options.model = ModelId::new("micro");
        options.model_dir = micro();
        options.num_threads = NonZeroUsize::MIN;
        workers.push(Remote::start_with(Worker::bind(options)).await);
    }
    (coordinator, workers)
}

fn chunk(sequence_id: u64, first_position: u32, tokens: Tokens) -> proto::SequenceChunk {
    let new_blocks = if first_position == 0 { vec![sequence_id as u32] } else { Vec::new() };
    let sampling = proto::SamplingParams {
        temperature: 0.8,
        top_p: 0.95,
        seed: 17,
        logprobs: true,
        num_top_logprobs: 3,
        ..proto::SamplingParams::default()
    };
    let start =
        proto::SequenceStart { prompt_len: PROMPT_LEN, sampling: Some(sampling), constraint: None };
    let tokens = Some(tokens);
    proto::SequenceChunk {
        sequence_id,
        first_position,
        tokens,
        new_blocks,
        start: (first_position == 0).then_some(start),
        samples: true,
    }
}

/// Prefills and decodes one sequence on the last rank, the others without work.
async fn generate(steps: &mut [Steps], epoch: u64) -> Vec<SampledToken> {
    let prompt: Vec<u32> = (0..PROMPT_LEN).map(|i| (i * 37 + 5) % 256).collect();
    let last = steps.len() - 1;
    let mut samples = Vec::new();
    for step in 1..=1 + NUM_DECODE_STEPS {
        let chunk = match step {
            1 => chunk(2, 0, Tokens::TokenIds(proto::TokenIds { ids: prompt.clone() })),
            _ => {
                let position = prompt.len() as u32 + step as u32 - 2;
                chunk(2, position, Tokens::LastSample(proto::LastSample {}))
            }
        };
        for (rank, stream) in steps.iter().enumerate() {
            let chunks = if rank == last { vec![chunk.clone()] } else { Vec::new() };
            stream.send(RankBatch { epoch, step, chunks, ..RankBatch::default() }).await;
        }
        for stream in steps.iter_mut() {
            samples.extend(stream.next().await.unwrap().samples);
        }
    }
    samples
}

async fn serve(workers: &mut [Remote], epoch: u64) -> Vec<Steps> {
    let placement = placement(NUM_LAYERS, NUM_EXPERTS, workers.len());
    for progress in load(workers, &placement).await.unwrap() {
        assert!(is_ready(&progress) && progress.bytes_total > 0);
        assert_eq!(progress.bytes_done, progress.bytes_total);
    }
    form(workers, &placement, epoch).await.unwrap();
    let mut steps = Vec::new();
    for worker in workers {
        steps.push(worker.execute().await.unwrap());
    }
    steps
}

#[tokio::test]
async fn samples_do_not_depend_on_the_workers_nor_on_what_they_held_before() {
    let (_coordinator, mut alone) = start(1).await;
    let expected = generate(&mut serve(&mut alone, 1).await, 1).await;
    assert_eq!(expected.len() as u64, 1 + NUM_DECODE_STEPS);

    let (_coordinator, mut three) = start(3).await;
    let mut steps = serve(&mut three, 1).await;
    assert_eq!(generate(&mut steps, 1).await, expected);
    // One dies between steps; the others take its experts over and replay.
    drop(steps);
    three[1].kill();
    three.remove(1);
    assert_eq!(generate(&mut serve(&mut three, 2).await, 2).await, expected);
}
