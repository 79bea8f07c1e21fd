//! One step's plan: for each priority decodes, then prefills under way, then admissions.

use std::cmp::Reverse;
use std::time::Duration;

use switchyard_moe::ids::{SequenceId, StepId};

use super::sequence::Turn;
use super::state::Scheduler;
use super::{Batch, Chunk, ChunkTokens, Priority, RankBatch, STEPS_IN_FLIGHT_MAX, Update};

/// One rank's part of the step being planned.
#[derive(Debug)]
struct Draft {
    chunks: Vec<Chunk>,
    /// Tokens that may still be added.
    budget: usize,
    admits: Admits,
}

/// Whom a rank admits in this step: nobody of a priority of which it has preempted a sequence, or of a lower one. The
/// blocks are needed by those who run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admits {
    All,
    Interactive,
    Nobody,
}

// === impl Admits ===

impl Admits {
    fn allows(self, priority: Priority) -> bool {
        match (self, priority) {
            (Self::All, Priority::Interactive | Priority::Batch)
            | (Self::Interactive, Priority::Interactive) => true,
            (Self::Interactive, Priority::Batch)
            | (Self::Nobody, Priority::Interactive | Priority::Batch) => false,
        }
    }
}

// === impl Scheduler ===

impl Scheduler {
    pub(super) fn plan(&mut self, now: Duration, updates: &mut Vec<Update>) -> Option<Batch> {
        if self.ranks.is_empty() || self.in_flight.len() >= STEPS_IN_FLIGHT_MAX {
            return None;
        }
        let draft = |_: &_| Draft {
            chunks: Vec::new(),
            budget: self.limits.max_num_batched_tokens,
            admits: Admits::All,
        };
        let mut drafts: Vec<Draft> = self.ranks.iter().map(draft).collect();
        for priority in Priority::ALL {
            for (rank, draft) in drafts.iter_mut().enumerate() {
                self.plan_decodes(rank, priority, draft, updates);
                self.plan_prefills(rank, priority, draft, updates);
            }
            self.admit(now, priority, &mut drafts, updates);
        }
        self.finish(drafts)
    }

    /// Sequences of a rank and a priority, in their order.
    fn running(&self, rank: usize, priority: Priority) -> Vec<Turn> {
        let running = self.ranks[rank].running.iter().copied();
        running.filter(|turn| turn.priority == priority).collect()
    }

    fn plan_decodes(
        &mut self,
        rank: usize,
        priority: Priority,
        draft: &mut Draft,
        updates: &mut Vec<Update>,
    ) {
        for turn in self.running(rank, priority) {
            if draft.budget == 0 {
                break;
            }
            // Decodes are planned in order and the last is preempted: never one that is planned already, but perhaps one
            // that was to follow.
            if !self.ranks[rank].running.contains(&turn) || !self.sequences[&turn.id].wants_decode()
            {
                continue;
            }
            if let Some(chunk) = self.plan_decode(rank, turn, draft, updates) {
                draft.chunks.push(chunk);
                draft.budget -= 1;
            }
        }
    }

    /// Finds the block that the next position may need, preempting for it, and plans the decode; `None` when `id`
    /// itself was preempted.
    fn plan_decode(
        &mut self,
        rank: usize,
        turn: Turn,
        draft: &mut Draft,
        updates: &mut Vec<Update>,
    ) -> Option<Chunk> {
        let needed = self.sequences[&turn.id].blocks_for(1);
        while self.ranks[rank].pool.num_free() < needed {
            let last = *self.ranks[rank].running.last()?;
            self.preempt(last.id);
            updates.push(Update::Preempted(last.id));
            draft.close_for(last.priority);
            if last == turn {
                return None;
            }
        }
        let blocks = self.ranks[rank].pool.take(needed)?;
        Some(self.sequences.get_mut(&turn.id)?.decode_chunk(blocks))
    }

    fn plan_prefills(
        &mut self,
        rank: usize,
        priority: Priority,
        draft: &mut Draft,
        updates: &mut Vec<Update>,
    ) {
        for turn in self.running(rank, priority) {
            let sequence = &self.sequences[&turn.id];
            let num_tokens = sequence.prefill_left().min(draft.budget);
            if num_tokens == 0 {
                continue;
            }
            if priority == Priority::Interactive {
                let needed = sequence.blocks_for(num_tokens);
                self.reclaim(rank, needed, draft, updates);
            }
            self.plan_prefill(rank, turn.id, draft);
        }
    }

    /// Preempts batch sequences until so many blocks are free, or none is left. None of theirs is planned yet.
    fn reclaim(
        &mut self,
        rank: usize,
        needed: usize,
        draft: &mut Draft,
        updates: &mut Vec<Update>,
    ) {
        while self.ranks[rank].pool.num_free() < needed {
            let last = self.ranks[rank].running.last();
            let Some(&last) = last.filter(|turn| turn.priority == Priority::Batch) else { return };
            self.preempt(last.id);
            updates.push(Update::Preempted(last.id));
            draft.close_for(last.priority);
        }
    }

    /// Plans as much of the prefill as budget and blocks allow; perhaps nothing.
    fn plan_prefill(&mut self, rank: usize, id: SequenceId, draft: &mut Draft) {
        let pool = &mut self.ranks[rank].pool;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let room = sequence.room_with(pool.num_free());
        let num_tokens = sequence.prefill_left().min(draft.budget).min(room);
        if num_tokens == 0 {
            return;
        }
        let Some(blocks) = pool.take(sequence.blocks_for(num_tokens)) else { return };
        draft.chunks.push(sequence.prefill_chunk(num_tokens, blocks));
        draft.budget -= num_tokens;
    }

    /// Gives waiting sequences of a priority a rank, in their order, until one finds none. None of them goes before one
    /// of a higher priority that still waits.
    fn admit(
        &mut self,
        now: Duration,
        priority: Priority,
        drafts: &mut [Draft],
        updates: &mut Vec<Update>,
    ) {
        while let Some(&turn) = self.waiting.first().filter(|turn| turn.priority == priority) {
            let rank =
                self.choose_rank(turn, drafts).or_else(|| self.clear_rank(turn, drafts, updates));
            let Some(rank) = rank else { return };
            let Some(sequence) = self.sequences.get_mut(&turn.id) else { return };
            if !sequence.started {
                let waited = now.saturating_sub(sequence.queued_at);
                updates.push(Update::Started { sequence: turn.id, waited });
            }
            sequence.begin(rank);
            self.waiting.remove(&turn);
            self.ranks[rank].running.insert(turn);
            self.plan_prefill(rank, turn.id, &mut drafts[rank]);
        }
    }

    /// The rank with the most blocks to spare among those that can begin the sequence in this step; then the one with
    /// the fewest sequences, then the lowest.
    fn choose_rank(&self, turn: Turn, drafts: &[Draft]) -> Option<usize> {
        let sequence = &self.sequences[&turn.id];
        if !sequence.is_settled() {
            return None;
        }
        (0..self.ranks.len())
            .filter(|&rank| {
                drafts[rank].may_begin(turn.priority)
                    && self.ranks[rank].running.len() < self.limits.max_num_seqs
            })
            .filter_map(|rank| Some((rank, self.spare_blocks(rank)?)))
            .filter(|&(_, spare)| spare >= sequence.prefill_blocks())
            .max_by_key(|&(rank, spare)| {
                (spare, Reverse(self.ranks[rank].running.len()), Reverse(rank))
            })
            .map(|(rank, _)| rank)
    }

    /// Preempts batch sequences for an interactive one that found no rank, on the rank where the fewest will do. None of
    /// theirs is planned yet in this step.
    fn clear_rank(
        &mut self,
        turn: Turn,
        drafts: &mut [Draft],
        updates: &mut Vec<Update>,
    ) -> Option<usize> {
        if turn.priority != Priority::Interactive || !self.sequences[&turn.id].is_settled() {
            return None;
        }
        let (rank, victims) = (0..self.ranks.len())
            .filter(|&rank| drafts[rank].may_begin(turn.priority))
            .filter_map(|rank| Some((rank, self.in_the_way(rank, turn.id)?)))
            .min_by_key(|(rank, victims)| (victims.len(), *rank))?;
        for id in victims {
            self.preempt(id);
            updates.push(Update::Preempted(id));
        }
        drafts[rank].close_for(Priority::Batch);
        Some(rank)
    }

    /// The batch sequences of a rank without which `id` could begin there, the newest first; `None` if it still could not.
    fn in_the_way(&self, rank: usize, id: SequenceId) -> Option<Vec<SequenceId>> {
        let needed = self.sequences[&id].prefill_blocks() + self.set_aside(rank);
        let mut spare = self.ranks[rank].pool.num_free();
        let mut num_running = self.ranks[rank].running.len();
        let mut victims = Vec::new();
        let mut batch = self.running(rank, Priority::Batch).into_iter().rev();
        while spare < needed || num_running >= self.limits.max_num_seqs {
            let victim = batch.next()?.id;
            spare += self.sequences[&victim].blocks_held();
            num_running -= 1;
            victims.push(victim);
        }
        Some(victims)
    }

    /// Free blocks less those that prefills under way will need; `None` when even these are short.
    fn spare_blocks(&self, rank: usize) -> Option<usize> {
        self.ranks[rank].pool.num_free().checked_sub(self.set_aside(rank))
    }

    /// Blocks that prefills under way on a rank will need.
    fn set_aside(&self, rank: usize) -> usize {
        let running = self.ranks[rank].running.iter();
        running.map(|turn| self.sequences[&turn.id].prefill_blocks_left()).sum()
    }

    /// Closes the step, unless no rank has anything to do or to forget.
    fn finish(&mut self, drafts: Vec<Draft>) -> Option<Batch> {
        let is_empty = drafts.iter().all(|draft| draft.chunks.is_empty())
            && self.ranks.iter().all(|rank| rank.released.is_empty());
        if is_empty {
            return None;
        }
        self.last_step = StepId(self.last_step.0 + 1);
        let ranks: Vec<RankBatch> = drafts
            .into_iter()
            .zip(&mut self.ranks)
            .map(|(mut draft, rank)| {
                // Stable: the order within each kind stays.
                draft.chunks.sort_by_key(|chunk| !matches!(chunk.tokens, ChunkTokens::LastSample));
                RankBatch { chunks: draft.chunks, released: std::mem::take(&mut rank.released) }
            })
            .collect();
        self.in_flight.push_back(self.last_step);
        Some(Batch { step: self.last_step, ranks })
    }
}

// === impl Draft ===

impl Draft {
    /// Whether a sequence of this priority may begin on the rank in this step.
    fn may_begin(&self, priority: Priority) -> bool {
        self.budget > 0 && self.admits.allows(priority)
    }

    /// A sequence of this priority was preempted.
    fn close_for(&mut self, priority: Priority) {
        self.admits = match (self.admits, priority) {
            (Admits::Nobody, Priority::Batch) | (_, Priority::Interactive) => Admits::Nobody,
            (Admits::All | Admits::Interactive, Priority::Batch) => Admits::Interactive,
        };
    }
}
