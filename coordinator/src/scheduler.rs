//! Which tokens are computed next, where, and in which KV blocks. Pure: no await, clock, I/O or randomness.
//!
//! [`Scheduler::step`] takes what happened since the last call and returns what it means for the sequences'
//! owners ([`Update`]) and, when a step may be started, the work of every rank ([`Batch`]).
//!
//! # Order
//! Sequences have one order: by [`Priority`], then by their ids, which are given out on arrival. Admission follows it
//! without skipping; preemption takes the last. So the first sequence of a rank is never preempted for the benefit of
//! another, always gets on, and no interactive sequence starves.
//!
//! # Batches
//! Sequences of [`Priority::Batch`] get what is left. A step is planned for all interactive ones first, and an interactive
//! one that finds no place takes that of batch ones, the newest first. What somebody waits for so takes as long as if
//! there were no batches, but for the steps in flight.
//!
//! # Two steps in flight
//! Step N+1 is planned while N runs. A decode needs no token from here ("your last sample"), so a sequence's known
//! length is its accepted tokens plus its outstanding samples. The limit on the answer's length counts both, and is never
//! overshot. A stop token or a cancellation is found late: the one extra sample then belongs to no sequence and is dropped.
//!
//! # Why freed blocks may be given out at once
//! A block that is freed while a step in flight still writes it may be part of the very next batch. A rank runs its
//! steps in order, and a batch names the released sequences, whose state is dropped before the batch runs: so the step
//! in flight is over before the block's next owner touches it. Ranks share no blocks, so no order between ranks is needed.
//!
//! # Samples put off
//! A rank that cannot sample in time for one sequence says so ([`Outcome::Deferred`]) instead of holding up the step. The
//! chunk's last token then counts as not computed. A decode of the sequence that was already in flight computes it
//! again, one position before the one it was planned for; positions planned from then on are right again.
//!
//! # Preemption
//! A decode that needs a block when none is free preempts the newest running sequence of its rank, possibly itself.
//! That one waits again, at the place its id gives it, and recomputes prompt and accepted tokens as one prefill. Samples of it
//! that are in flight are still accepted (they are the very tokens that a recomputation would give); it is admitted
//! again when none is outstanding. A prefill never preempts. Its blocks are set aside when it is admitted; a decode may
//! take them, in which case the prefill waits until that decode, or its preemption, gives them back.

use std::time::Duration;

use switchyard_moe::ids::{BlockId, SequenceId, StepId};

use crate::engine::request::{FinishReason, GeneratedToken};

mod block_pool;
mod sequence;
mod rank;
mod plan;
mod state;

#[cfg(test)]
mod tests;

pub use state::Scheduler;

/// Steps sent but not committed: one runs, one is ready to follow it.
pub const STEPS_IN_FLIGHT_MAX: usize = 2;

/// What may never be exceeded, fixed for a group's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that hold state on one rank.
    pub max_num_seqs: usize,
    /// Tokens of one rank in one step.
    pub max_num_batched_tokens: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
    /// KV blocks of one rank.
    pub num_blocks: usize,
    /// Sequences that wait and have not run yet.
    pub max_waiting: usize,
}

/// Whether somebody waits for a sequence. The order is the one in which sequences are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for each token.
    #[default]
    Interactive,
    /// Part of a batch: nobody waits, and it gets what the others leave.
    Batch,
}

/// A sequence on arrival.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// Its id; higher than that of every sequence before.
    pub id: SequenceId,
    /// Whom it goes before.
    pub priority: Priority,
    /// Prompt token ids, not empty.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A sequence arrived. Answered by [`Update::Queued`] or [`Update::Refused`].
    Submitted(NewSequence),
    /// Nobody wants the sequence any more. Unknown ids are ignored: it may just have finished.
    Cancelled(SequenceId),
    /// The oldest step in flight is over on all ranks.
    StepCommitted {
        /// The step.
        step: StepId,
        /// Its samples, over all ranks.
        samples: Vec<Sample>,
    },
    /// A group of empty ranks takes steps from 1 on. Whatever ran before is rolled back first.
    GroupFormed {
        /// Its ranks, at least 1.
        world_size: usize,
        /// What holds from now on. No sequence that is already known may exceed it.
        limits: Limits,
    },
    /// The group is gone: its steps in flight never end, and its blocks no longer exist. What ran waits again.
    GroupLost,
}

/// What became of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its sequence.
    pub sequence: SequenceId,
    /// Its absolute position.
    pub position: usize,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A token.
    Drawn(GeneratedToken),
    /// Nothing yet: the chunk's last token counts as not computed.
    Deferred,
    /// Nothing, now and for ever.
    Failed(String),
}

impl Sample {
    /// Its sequence, if it was put off.
    pub(crate) fn deferred(&self) -> Option<SequenceId> {
        (self.outcome == Outcome::Deferred).then_some(self.sequence)
    }
}

/// What an event means for a sequence's owner.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The sequence was accepted and waits.
    Queued(SequenceId),
    /// The sequence is not accepted.
    Refused(SequenceId, Error),
    /// The sequence runs for the first time.
    Started {
        /// The sequence.
        sequence: SequenceId,
        /// Time since it was queued.
        waited: Duration,
    },
    /// The sequence was preempted and will be recomputed.
    Preempted(SequenceId),
    /// One more token of the answer.
    Token(SequenceId, GeneratedToken),
    /// The answer is complete; the scheduler has forgotten the sequence.
    Finished(SequenceId, FinishReason),
    /// The answer cannot go on, and why; the scheduler has forgotten the sequence.
    Failed(SequenceId, String),
}

/// Why a sequence is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The waiting queue is full.
    #[error("{waiting} sequences are already waiting, which is the limit")]
    QueueFull {
        /// Sequences waiting.
        waiting: usize,
    },
    /// The sequence could grow past what a rank can hold.
    #[error("the sequence may grow to {needed} tokens, but a sequence may have {available}")]
    TooLong {
        /// Tokens of the prompt and the longest possible answer.
        needed: usize,
        /// Tokens that one sequence may have.
        available: usize,
    },
}

/// What one call of [`Scheduler::step`] decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// News for the sequences' owners, in order.
    pub updates: Vec<Update>,
    /// The next step, or `None` when there is nothing to do or enough is in flight.
    pub batch: Option<Batch>,
}

/// One step of the whole group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Counts from 1 in each group.
    pub step: StepId,
    /// The work of each rank, `[world_size]`.
    pub ranks: Vec<RankBatch>,
}

/// One step of one rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankBatch {
    /// Decodes first, then prefills; each in the order of the sequences.
    pub chunks: Vec<Chunk>,
    /// Sequences whose state is dropped before the step runs.
    pub released: Vec<SequenceId>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The sequence.
    pub sequence: SequenceId,
    /// Absolute position of the first token; 0 begins the sequence (anew).
    pub first_position: usize,
    /// The tokens.
    pub tokens: ChunkTokens,
    /// Blocks appended to the sequence's block table before the chunk runs.
    pub new_blocks: Vec<BlockId>,
    /// Whether the last token's logits are sampled from.
    pub samples: bool,
}

/// Where a chunk's tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkTokens {
    /// Prefill: the ids, never empty.
    Ids(Vec<u32>),
    /// Decode: the token that the rank sampled last for this sequence.
    LastSample,
}

/// Figures for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that hold state on a rank.
    pub running: usize,
    /// Sequences that do not.
    pub waiting: usize,
    /// `[world_size]`; empty without a group.
    pub ranks: Vec<RankStats>,
}

/// Figures of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankStats {
    /// Sequences on this rank.
    pub running: usize,
    /// Blocks that no sequence holds.
    pub free_blocks: usize,
    /// Blocks of the pool.
    pub total_blocks: usize,
}

// === impl Priority ===

impl Priority {
    /// All of them, in the order in which they are served.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Batch];
}

// === impl Batch ===

impl Batch {
    /// Tokens computed as prefill and as decode, over all ranks.
    #[must_use]
    pub fn num_tokens(&self) -> (usize, usize) {
        let chunks = self.ranks.iter().flat_map(|rank| &rank.chunks);
        chunks.fold((0, 0), |(prefill, decode), chunk| match &chunk.tokens {
            ChunkTokens::Ids(ids) => (prefill + ids.len(), decode),
            ChunkTokens::LastSample => (prefill, decode + 1),
        })
    }
}

// === impl Chunk ===

impl Chunk {
    /// Tokens of the chunk.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        match &self.tokens {
            ChunkTokens::Ids(ids) => ids.len(),
            ChunkTokens::LastSample => 1,
        }
    }

    /// Position of the token that the chunk samples.
    #[must_use]
    pub fn sample_position(&self) -> usize {
        self.first_position + self.num_tokens()
    }
}
