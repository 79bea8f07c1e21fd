//! What a simulated rank computes, and the promises it holds the coordinator to.

use std::collections::BTreeMap;

use switchyard_moe::capacity;
use switchyard_proto::worker::sequence_chunk::Tokens;
use switchyard_proto::worker::{CacheLimits, RankBatch, SampledToken, SequenceChunk, StepOutput};

/// Tokens of the simulated model.
const VOCAB: u64 = 61;

/// The sequences of one rank.
#[derive(Debug, Default)]
pub(super) struct SimRank {
    sequences: BTreeMap<u64, SimSequence>,
}

#[derive(Debug, Default)]
struct SimSequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    last_sample: Option<u32>,
    seed: u64,
    is_deferred: bool,
}

/// One sample in so many is put off, chosen by the step and the sequence.
const DEFERRED_ONE_IN: u64 = 11;

fn next_token(tokens: &[u32], seed: u64) -> u32 {
    let hash = tokens.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash: u64, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3)
    });
    ((hash >> 17) % VOCAB) as u32
}

/// The answer that a request gets from an undisturbed cluster.
pub(crate) fn answer(request: &crate::engine::request::GenerateRequest) -> Vec<u32> {
    let mut tokens = request.prompt.clone();
    for _ in 0..request.max_tokens {
        let next = next_token(&tokens, request.sampling.seed);
        if request.stop_token_ids.contains(&next) {
            break;
        }
        tokens.push(next);
    }
    tokens.split_off(request.prompt.len())
}

impl SimRank {
    pub(super) fn run(&mut self, batch: RankBatch, limits: &CacheLimits) -> StepOutput {
        for id in &batch.released_sequence_ids {
            assert!(self.sequences.remove(id).is_some(), "{id} released, but not held");
        }
        let mut num_tokens = 0;
        let mut output =
            StepOutput { epoch: batch.epoch, step: batch.step, ..StepOutput::default() };
        for chunk in batch.chunks {
            self.check_blocks(&chunk, limits);
            if chunk.first_position == 0 {
                let held = self.sequences.insert(chunk.sequence_id, SimSequence::default());
                assert!(held.is_none(), "{} began twice", chunk.sequence_id);
            }
            let sequence = self.sequences.get_mut(&chunk.sequence_id).expect("has begun");
            num_tokens += match chunk.tokens.as_ref().unwrap() {
                Tokens::TokenIds(ids) => ids.ids.len(),
                Tokens::LastSample(_) => 1,
            };
            let id = chunk.sequence_id;
            let is_late = (batch.step * 7 + id * 3).is_multiple_of(DEFERRED_ONE_IN);
            match sequence.run(chunk, is_late) {
                Some(sample) => output.samples.push(sample),
                None if sequence.is_deferred => output.deferred_sequence_ids.push(id),
                None => {}
            }
        }
        assert!(self.sequences.len() <= limits.max_num_seqs as usize);
        assert!(num_tokens <= limits.max_num_batched_tokens as usize);
        output
    }

    fn check_blocks(&self, chunk: &SequenceChunk, limits: &CacheLimits) {
        for block in &chunk.new_blocks {
            assert!(*block < limits.num_blocks, "block {block} does not exist");
            let owner = self.sequences.iter().find(|(_, held)| held.blocks.contains(block));
            assert!(owner.is_none(), "block {block} is held by {owner:?}");
        }
    }
}

impl SimSequence {
    fn run(&mut self, chunk: SequenceChunk, is_late: bool) -> Option<SampledToken> {
        let ahead = chunk.first_position as usize - self.tokens.len();
        assert!(ahead == 0 || ahead == 1 && self.is_deferred, "a gap, or a position twice");
        assert_eq!(chunk.start.is_some(), chunk.first_position == 0);
        if let Some(start) = chunk.start {
            self.seed = start.sampling.unwrap().seed;
        }
        match chunk.tokens.unwrap() {
            Tokens::TokenIds(ids) => self.tokens.extend(ids.ids),
            Tokens::LastSample(_) => self.tokens.push(self.last_sample.take().unwrap()),
        }
        self.blocks.extend(chunk.new_blocks);
        assert!(self.blocks.len() >= capacity::num_blocks(self.tokens.len()));
        self.is_deferred = chunk.samples && is_late;
        if self.is_deferred {
            self.last_sample = self.tokens.pop();
            return None;
        }
        chunk.samples.then(|| {
            let token_id = next_token(&self.tokens, self.seed);
            self.last_sample = Some(token_id);
            SampledToken {
                sequence_id: chunk.sequence_id,
                position: self.tokens.len() as u32,
                token_id,
                ..SampledToken::default()
            }
        })
    }
}
