use super::*;
use std::thread;
use std::time::Duration;

use switchyard_moe::ids::GroupEpoch;

use crate::backend::cpu::CpuTensor;
use crate::collective::local::{self, Local};
use crate::collective::{AbortHandle, Direction, Phase};
use crate::step::{Constraint, SampledToken, SamplingParams, SequenceChunk, SequenceStart};
use crate::verify::tests::{golden, golden_ids, micro, tiny_b};
use crate::weights::Checkpoint;

mod exchange;
mod layers;
mod sequences;

const LIMITS: CacheLimits = CacheLimits {
    num_blocks: 40,
    max_num_seqs: 20,
    max_num_batched_tokens: 256,
    max_model_len: 512,
};

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&micro().join("q")).unwrap()
}

fn load(numerics: Numerics, rank: u32, world_size: usize) -> RankModel {
    load_from(&checkpoint(), numerics, (rank, world_size))
}

fn load_from(
    checkpoint: &Checkpoint,
    numerics: Numerics,
    (rank, world_size): (u32, usize),
) -> RankModel {
    let config = checkpoint.config();
    let placement =
        Placement::contiguous(config.num_hidden_layers, config.n_routed_experts, world_size);
    let options = LoadOptions {
        rank: EpRank(rank),
        placement,
        numerics,
        limits: LIMITS,
        num_threads: NonZeroUsize::MIN,
        exchange_deadline: Duration::from_secs(60),
    };
    RankModel::load(checkpoint, &options, &mut |_| {}).unwrap()
}

fn mesh(world_size: usize) -> Vec<Local> {
    local::mesh(world_size, GroupEpoch(1), Duration::from_secs(60))
}

fn greedy() -> SamplingParams {
    SamplingParams { logprobs: true, num_top_logprobs: 3, ..SamplingParams::default() }
}

/// Some tokens of the micro vocabulary.
fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * seed + 3 * seed) % 256).collect()
}

fn prefill(
    sequence: u64,
    first: usize,
    tokens: &[u32],
    sampling: Option<SamplingParams>,
) -> SequenceChunk {
    let blocks = |len: usize| switchyard_moe::capacity::num_blocks(len) as u32;
    SequenceChunk {
        sequence: SequenceId(sequence),
        first_position: first as u32,
        tokens: ChunkTokens::Ids(tokens.to_vec()),
        // Every sequence has four blocks of its own.
        new_blocks: (blocks(first)..blocks(first + tokens.len()))
            .map(|block| BlockId(sequence as u32 * 4 + block))
            .collect(),
        start: (first == 0).then(|| SequenceStart {
            prompt_len: tokens.len(),
            sampling: sampling.clone().unwrap_or_default(),
            constraint: None,
        }),
        samples: sampling.is_some(),
    }
}

fn decode(sequence: u64, position: usize) -> SequenceChunk {
    let ids = ChunkTokens::LastSample;
    SequenceChunk { tokens: ids, ..prefill(sequence, position, &[0], Some(greedy())) }
}

fn batch(chunks: Vec<SequenceChunk>) -> StepBatch {
    StepBatch { chunks, released: Vec::new() }
}
