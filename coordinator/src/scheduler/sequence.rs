//! One sequence: the tokens it has, and how far a rank has computed them.

use std::time::Duration;

use switchyard_moe::capacity;
use switchyard_moe::ids::{BlockId, SequenceId};

use super::{Chunk, ChunkTokens, NewSequence, Priority};
use crate::engine::request::FinishReason;

/// A sequence's place among all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) priority: Priority,
    pub(super) id: SequenceId,
}

/// A sequence that is waiting or running. Its tokens are the truth; everything else is rebuilt from them.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) turn: Turn,
    /// Prompt and accepted tokens.
    tokens: Vec<u32>,
    /// Length at which the answer is as long as was asked for.
    max_len: usize,
    stop_token_ids: Vec<u32>,
    pub(super) queued_at: Duration,
    /// Whether it has ever run.
    pub(super) started: bool,
    /// The rank that computes it, by index; `None` while waiting.
    pub(super) rank: Option<usize>,
    /// Samples planned and not committed.
    num_outstanding: usize,
    /// Positions `0..num_scheduled` are planned or computed in the present computation.
    num_scheduled: usize,
    /// Positions that the present computation takes from `tokens`; later ones are decoded.
    prefill_len: usize,
    /// Blocks of positions `0..num_scheduled`, on `rank`.
    block_table: Vec<BlockId>,
}

// === impl Sequence ===

impl Sequence {
    pub(super) fn new(new: NewSequence, now: Duration) -> Self {
        Self {
            turn: Turn { priority: new.priority, id: new.id },
            max_len: new.prompt.len() + new.max_tokens,
            tokens: new.prompt,
            stop_token_ids: new.stop_token_ids,
            queued_at: now,
            started: false,
            rank: None,
            num_outstanding: 0,
            num_scheduled: 0,
            prefill_len: 0,
            block_table: Vec::new(),
        }
    }

    /// Blocks that a computation of all present tokens needs.
    pub(super) fn prefill_blocks(&self) -> usize {
        capacity::num_blocks(self.tokens.len())
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.num_outstanding == 0
    }

    /// Begins a computation on `rank` at position 0.
    pub(super) fn begin(&mut self, rank: usize) {
        debug_assert!(self.is_settled() && self.block_table.is_empty() && self.rank.is_none());
        self.rank = Some(rank);
        self.started = true;
        self.num_scheduled = 0;
        self.prefill_len = self.tokens.len();
    }

    /// Ends the computation and gives up the blocks. Samples in flight stay outstanding.
    pub(super) fn end(&mut self) -> Vec<BlockId> {
        self.rank = None;
        self.num_scheduled = 0;
        self.prefill_len = 0;
        std::mem::take(&mut self.block_table)
    }

    /// Forgets samples in flight: their steps will never end.
    pub(super) fn forget_outstanding(&mut self) {
        self.num_outstanding = 0;
    }

    /// Prefill positions not planned yet.
    pub(super) fn prefill_left(&self) -> usize {
        self.prefill_len.saturating_sub(self.num_scheduled)
    }

    /// Blocks that its rank gets to spare without it.
    pub(super) fn blocks_held(&self) -> usize {
        self.block_table.len() + self.prefill_blocks_left()
    }

    /// Blocks that the rest of the prefill will need.
    pub(super) fn prefill_blocks_left(&self) -> usize {
        capacity::num_blocks(self.prefill_len).saturating_sub(self.block_table.len())
    }

    /// Whether the next position is a decode that is still wanted.
    pub(super) fn wants_decode(&self) -> bool {
        self.rank.is_some()
            && self.prefill_left() == 0
            && self.tokens.len() + self.num_outstanding < self.max_len
    }

    /// Blocks to add before `num_tokens` more positions are planned.
    pub(super) fn blocks_for(&self, num_tokens: usize) -> usize {
        // After samples were put off there may be a block more than is needed.
        capacity::num_blocks(self.num_scheduled + num_tokens).saturating_sub(self.block_table.len())
    }

    /// Positions that fit in the present blocks and `free` more.
    pub(super) fn room_with(&self, free: usize) -> usize {
        (self.block_table.len() + free) * switchyard_moe::config::BLOCK_SIZE - self.num_scheduled
    }

    /// Plans the decode of the next position.
    pub(super) fn decode_chunk(&mut self, new_blocks: Vec<BlockId>) -> Chunk {
        self.chunk(1, ChunkTokens::LastSample, new_blocks)
    }

    /// Plans the next `num_tokens` prefill positions.
    pub(super) fn prefill_chunk(&mut self, num_tokens: usize, new_blocks: Vec<BlockId>) -> Chunk {
        let ids = self.tokens[self.num_scheduled..self.num_scheduled + num_tokens].to_vec();
        self.chunk(num_tokens, ChunkTokens::Ids(ids), new_blocks)
    }

    fn chunk(&mut self, num_tokens: usize, tokens: ChunkTokens, blocks: Vec<BlockId>) -> Chunk {
        let first_position = self.num_scheduled;
        self.num_scheduled += num_tokens;
        self.block_table.extend(&blocks);
        let samples = self.prefill_left() == 0;
        self.num_outstanding += usize::from(samples);
        Chunk { sequence: self.turn.id, first_position, tokens, new_blocks: blocks, samples }
    }

    /// Accepts the oldest outstanding sample; says whether the answer is complete with it.
    pub(super) fn accept(&mut self, token: u32) -> Option<FinishReason> {
        debug_assert!(
            self.num_outstanding > 0,
            "sequence {} has no sample in flight",
            self.turn.id
        );
        self.num_outstanding -= 1;
        if self.stop_token_ids.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.tokens.push(token);
        (self.tokens.len() == self.max_len).then_some(FinishReason::Length)
    }

    /// The oldest outstanding sample was put off. Returns how many positions are still planned or computed; `None` for a
    /// sequence that has been taken off its rank and has nothing to take back.
    pub(super) fn defer(&mut self) -> Option<usize> {
        debug_assert!(
            self.num_outstanding > 0,
            "sequence {} has no sample in flight",
            self.turn.id
        );
        self.num_outstanding -= 1;
        self.rank?;
        self.num_scheduled -= 1;
        Some(self.num_scheduled)
    }

    /// Position of the next sample to be accepted.
    pub(super) fn next_position(&self) -> usize {
        self.tokens.len()
    }

    #[cfg(test)]
    pub(super) fn block_table(&self) -> &[BlockId] {
        &self.block_table
    }

    #[cfg(test)]
    pub(super) fn num_scheduled(&self) -> usize {
        self.num_scheduled
    }
}
