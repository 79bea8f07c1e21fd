//! Which sequences live on this rank, how far they have been computed, and which cells of the cache are theirs.
//!
//! This is the host's half of the cache: the numbers themselves lie in the backend, in one [`LayerLayout`] per layer.
//! - *Blocks* of [`BLOCK_SIZE`] tokens hold compressed entries and indexer keys; the coordinator hands them out.
//! - A *slot* per sequence holds its sliding window and its compressor tail: rings addressed by absolute position,
//!   [`ROLLBACK_TOKENS`] longer than a token can look back. A step that fails is therefore undone by not moving the
//!   length on.

use std::collections::{BTreeMap, BTreeSet};

use switchyard_moe::capacity::{self, ROLLBACK_TOKENS, num_blocks};
use switchyard_moe::config::{AttentionKind, BLOCK_SIZE, ModelConfig};
use switchyard_moe::ids::{BlockId, SequenceId};

use crate::step::{ChunkTokens, SamplingParams, SequenceChunk, StepBatch};

mod error;
#[cfg(test)]
mod tests;

pub use error::Error;

/// Most alternatives that are reported with a sampled token.
pub const NUM_TOP_LOGPROBS_MAX: u32 = 20;

/// Sizes of a rank's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Sequences at a time.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Tokens of one sequence.
    pub max_model_len: usize,
}

/// Shape of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLayout {
    /// How the layer attends.
    pub kind: AttentionKind,
    /// Width of a window row and of a compressed entry.
    pub head_dim: usize,
    /// Width of an indexer key.
    pub index_head_dim: usize,
    /// Tokens that a query sees in the window.
    pub sliding_window: usize,
    /// Rows of each sequence's window ring.
    pub window_rows: usize,
    /// Rows of each sequence's compressor ring, 0 without compressor.
    pub tail_rows: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Slots for sequences.
    pub num_slots: usize,
}

/// Some consecutive tokens of one sequence, as rows of the step's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// First row.
    pub first_row: usize,
    /// Rows.
    pub num_rows: usize,
    /// Absolute position of the first row.
    pub first_position: usize,
    /// The sequence's slot.
    pub slot: usize,
    /// The sequence's block table, covering all its tokens up to this span's last.
    pub blocks: &'a [BlockId],
}

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    slot: usize,
    num_tokens: usize,
    blocks: Vec<BlockId>,
    last_token: Option<u32>,
    /// Whether the last step computed a token too many for want of a sample; see [`Sequences::defer`].
    is_deferred: bool,
}

/// The sequences of a rank.
#[derive(Clone, Debug)]
pub struct Sequences {
    limits: CacheLimits,
    sequences: BTreeMap<SequenceId, Sequence>,
    free_slots: Vec<usize>,
    /// Owner of each block, `[num_blocks]`.
    owners: Vec<Option<SequenceId>>,
}

// === impl LayerLayout ===

impl LayerLayout {
    /// The layout of a layer of `config` that attends as `kind`.
    #[must_use]
    pub fn new(config: &ModelConfig, kind: AttentionKind, limits: &CacheLimits) -> Self {
        Self {
            kind,
            head_dim: config.head_dim,
            index_head_dim: config.index_head_dim,
            sliding_window: config.sliding_window,
            window_rows: capacity::window_rows(config),
            tail_rows: capacity::tail_rows(kind),
            num_blocks: limits.num_blocks,
            num_slots: limits.max_num_seqs,
        }
    }
}

// === impl Span ===

impl Span<'_> {
    /// Position after the last row.
    #[must_use]
    pub fn end_position(&self) -> usize {
        self.first_position + self.num_rows
    }
}

// === impl Sequence ===

impl Sequence {
    /// Tokens computed, which is the position of the next one.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Its place among the rings.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Its block table.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// The token that its next decode computes: the one it sampled in its last step.
    #[must_use]
    pub fn last_token(&self) -> Option<u32> {
        self.last_token
    }
}

// === impl Sequences ===

impl Sequences {
    /// No sequences.
    #[must_use]
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            sequences: BTreeMap::new(),
            free_slots: (0..limits.max_num_seqs).rev().collect(),
            owners: vec![None; limits.num_blocks],
        }
    }

    /// The sequence `id`.
    #[must_use]
    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Sequences on this rank.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Drops every sequence.
    pub fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Prepares for a step: drops what `batch` releases, begins the sequences that start in it, and appends the new
    /// blocks. Lengths stay until [`commit`](Self::commit).
    ///
    /// # Errors
    /// When the batch is impossible, with nothing changed. See [`Error`].
    pub fn admit(&mut self, batch: &StepBatch, vocab_size: usize) -> Result<(), Error> {
        self.check(batch, vocab_size)?;
        for &id in &batch.released {
            self.remove(id);
        }
        // All that begin anew give up their cells before any is handed out.
        for chunk in batch.chunks.iter().filter(|chunk| chunk.first_position == 0) {
            self.remove(chunk.sequence);
        }
        for chunk in &batch.chunks {
            let free_slots = &mut self.free_slots;
            let sequence = self.sequences.entry(chunk.sequence).or_insert_with(|| Sequence {
                slot: free_slots.pop().unwrap_or_default(),
                num_tokens: 0,
                blocks: Vec::new(),
                last_token: None,
                is_deferred: false,
            });
            sequence.blocks.extend_from_slice(&chunk.new_blocks);
            for block in &chunk.new_blocks {
                self.owners[block.0 as usize] = Some(chunk.sequence);
            }
        }
        Ok(())
    }

    /// Begins a sequence as if `num_tokens` of its tokens had been computed, which they were not: its cells hold what
    /// they held. For measurements of a step at a position, never for answers.
    ///
    /// # Errors
    /// When it lives already, or there are not enough slots or blocks; nothing has changed then.
    pub fn pretend(
        &mut self,
        id: SequenceId,
        num_tokens: usize,
        blocks: Vec<BlockId>,
    ) -> Result<(), Error> {
        if self.sequences.contains_key(&id) {
            return Err(Error::TwoChunks { sequence: id });
        }
        let num_blocks = self.limits.num_blocks;
        for &block in &blocks {
            match self.owners.get(block.0 as usize) {
                Some(None) => {}
                Some(Some(_)) => return Err(Error::BlockInUse { sequence: id, block }),
                None => return Err(Error::UnknownBlock { sequence: id, block, num_blocks }),
            }
        }
        let Some(slot) = self.free_slots.pop() else {
            return Err(Error::TooManySequences { limit: self.limits.max_num_seqs });
        };
        for block in &blocks {
            self.owners[block.0 as usize] = Some(id);
        }
        let sequence = Sequence { slot, num_tokens, blocks, last_token: None, is_deferred: false };
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Moves the length of the chunk's sequence on, after the step that computed it. `sample` is the token it sampled.
    pub fn commit(&mut self, id: SequenceId, num_tokens: usize, sample: Option<u32>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.num_tokens += num_tokens;
            sequence.last_token = sample;
            sequence.is_deferred = false;
        }
    }

    /// As [`commit`](Self::commit), for a chunk that was to end in a sample and has none: its last token, `last_token`,
    /// counts as not computed, so that the next decode computes it again and samples for the same position. That decode
    /// may have been sent before anybody knew: it may begin one position further on.
    pub fn defer(&mut self, id: SequenceId, num_tokens: usize, last_token: Option<u32>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.num_tokens += num_tokens.saturating_sub(1);
            sequence.last_token = last_token;
            sequence.is_deferred = true;
        }
    }

    /// Undoes [`admit`](Self::admit) after a step that failed. Sequences whose chunk overwrote more of their rings
    /// than [`ROLLBACK_TOKENS`], and those that had just begun, are dropped: they must begin again at position 0.
    pub fn abandon(&mut self, batch: &StepBatch) {
        for chunk in &batch.chunks {
            let num_tokens = num_tokens(&chunk.tokens);
            if chunk.first_position == 0 || num_tokens > ROLLBACK_TOKENS {
                self.remove(chunk.sequence);
            } else if let Some(sequence) = self.sequences.get_mut(&chunk.sequence) {
                let kept = sequence.blocks.len().saturating_sub(chunk.new_blocks.len());
                for block in sequence.blocks.drain(kept..) {
                    self.owners[block.0 as usize] = None;
                }
            }
        }
    }

    fn remove(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free_slots.push(sequence.slot);
            for block in sequence.blocks {
                self.owners[block.0 as usize] = None;
            }
        }
    }

    fn check(&self, batch: &StepBatch, vocab_size: usize) -> Result<(), Error> {
        let total: usize = batch.chunks.iter().map(|chunk| num_tokens(&chunk.tokens)).sum();
        if total > self.limits.max_num_batched_tokens {
            let limit = self.limits.max_num_batched_tokens;
            return Err(Error::TooManyTokens { num_tokens: total, limit });
        }
        // Sequences that end with this batch's arrival: released, or beginning anew.
        let mut ended: BTreeSet<_> = batch.released.iter().copied().collect();
        ended.extend(batch.chunks.iter().filter(|c| c.first_position == 0).map(|c| c.sequence));
        let mut alive = self.sequences.keys().filter(|id| !ended.contains(id)).count();
        let mut seen = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for chunk in &batch.chunks {
            if !seen.insert(chunk.sequence) {
                return Err(Error::TwoChunks { sequence: chunk.sequence });
            }
            let current = self.sequences.get(&chunk.sequence);
            let current = current.filter(|_| !ended.contains(&chunk.sequence));
            alive += usize::from(current.is_none());
            self.check_tokens(chunk, current, vocab_size)?;
            self.check_blocks(chunk, current, &ended, &mut taken)?;
            check_start(chunk, vocab_size)?;
        }
        if alive > self.limits.max_num_seqs {
            return Err(Error::TooManySequences { limit: self.limits.max_num_seqs });
        }
        Ok(())
    }

    fn check_tokens(
        &self,
        chunk: &SequenceChunk,
        current: Option<&Sequence>,
        vocab_size: usize,
    ) -> Result<(), Error> {
        let sequence = chunk.sequence;
        let first = chunk.first_position as usize;
        let position = match current {
            Some(current) => current.num_tokens,
            None if first == 0 => 0,
            None => return Err(Error::UnknownSequence { sequence, position: first }),
        };
        let is_ahead = first == position + 1
            && chunk.tokens == ChunkTokens::LastSample
            && current.is_some_and(|current| current.is_deferred);
        if first != position && !is_ahead {
            return Err(Error::PositionGap { sequence, expected: position, actual: first });
        }
        match &chunk.tokens {
            ChunkTokens::Ids(ids) if ids.is_empty() => return Err(Error::EmptyChunk { sequence }),
            ChunkTokens::Ids(ids) => {
                if let Some(&token_id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    return Err(Error::TokenId { sequence, token_id, vocab_size });
                }
            }
            ChunkTokens::LastSample => {
                if current.is_none_or(|current| current.last_token.is_none()) {
                    return Err(Error::NoLastSample { sequence });
                }
            }
        }
        let end = first + num_tokens(&chunk.tokens);
        if end > self.limits.max_model_len {
            return Err(Error::TooLong { sequence, end, limit: self.limits.max_model_len });
        }
        Ok(())
    }

    fn check_blocks(
        &self,
        chunk: &SequenceChunk,
        current: Option<&Sequence>,
        ended: &BTreeSet<SequenceId>,
        taken: &mut BTreeSet<BlockId>,
    ) -> Result<(), Error> {
        let sequence = chunk.sequence;
        let num = current.map_or(0, |current| current.blocks.len()) + chunk.new_blocks.len();
        let needed = num_blocks(chunk.first_position as usize + num_tokens(&chunk.tokens));
        let most = num_blocks(self.limits.max_model_len);
        if !(needed..=most).contains(&num) {
            return Err(Error::BlockCount { sequence, num_blocks: num, needed, most });
        }
        for &block in &chunk.new_blocks {
            let owner = *self.owners.get(block.0 as usize).ok_or(Error::UnknownBlock {
                sequence,
                block,
                num_blocks: self.limits.num_blocks,
            })?;
            let busy = owner.is_some_and(|owner| !ended.contains(&owner));
            if busy || !taken.insert(block) {
                return Err(Error::BlockInUse { sequence, block });
            }
        }
        Ok(())
    }
}

/// Tokens of a chunk.
#[must_use]
pub fn num_tokens(tokens: &ChunkTokens) -> usize {
    match tokens {
        ChunkTokens::Ids(ids) => ids.len(),
        ChunkTokens::LastSample => 1,
    }
}

/// A chunk says what its sequence is if it begins it, and only then.
fn check_start(chunk: &SequenceChunk, vocab_size: usize) -> Result<(), Error> {
    let sequence = chunk.sequence;
    match (&chunk.start, chunk.first_position) {
        (Some(start), 0) => check_sampling(sequence, &start.sampling, vocab_size),
        (None, 1..) => Ok(()),
        (None, 0) => Err(Error::NoStart { sequence }),
        (Some(_), position) => Err(Error::LateStart { sequence, position }),
    }
}

fn check_sampling(
    sequence: SequenceId,
    params: &SamplingParams,
    vocab_size: usize,
) -> Result<(), Error> {
    let is_biased = |&(token, bias): &(u32, f32)| (token as usize) < vocab_size && bias.is_finite();
    let fault = if !(params.temperature.is_finite() && params.temperature >= 0.0) {
        format!("temperature {} is not a number >= 0", params.temperature)
    } else if !(params.top_p > 0.0 && params.top_p <= 1.0) {
        format!("top_p {} is not above 0 and at most 1", params.top_p)
    } else if !(params.min_p >= 0.0 && params.min_p <= 1.0) {
        format!("min_p {} is not from 0 to 1", params.min_p)
    } else if !(params.presence_penalty.is_finite() && params.frequency_penalty.is_finite()) {
        let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
        format!("penalties {presence} and {frequency} are not both numbers")
    } else if !params.logit_bias.iter().all(is_biased) {
        format!("logit_bias has a token beyond the vocabulary of {vocab_size}, or no number")
    } else if !params.logit_bias.is_sorted_by(|(a, _), (b, _)| a < b) {
        "logit_bias is not in the order of its tokens".to_owned()
    } else if params.num_top_logprobs > NUM_TOP_LOGPROBS_MAX {
        format!("{} top_logprobs are more than {NUM_TOP_LOGPROBS_MAX}", params.num_top_logprobs)
    } else {
        return Ok(());
    };
    Err(Error::Sampling { sequence, fault })
}

const _: () = assert!(ROLLBACK_TOKENS <= BLOCK_SIZE);
