//! One step's plan: decodes, then prefills under way, then admissions.

use std::cmp::Reverse;
use std::time::Duration;

use switchyard_moe::ids::{SequenceId, StepId};

use super::state::Scheduler;
use super::{Batch, Chunk, RankBatch, STEPS_IN_FLIGHT_MAX, Update};

/// One rank's part of the step being planned.
#[derive(Debug)]
struct Draft {
    chunks: Vec<Chunk>,
    /// Tokens that may still be added.
    budget: usize,
    /// A rank that has just preempted admits nobody: the blocks are needed by those who run.
    preempted: bool,
}

// === impl Scheduler ===

impl Scheduler {
    pub(super) fn plan(&mut self, now: Duration, updates: &mut Vec<Update>) -> Option<Batch> {
        if self.ranks.is_empty() || self.in_flight.len() >= STEPS_IN_FLIGHT_MAX {
            return None;
        }
        let mut drafts = Vec::with_capacity(self.ranks.len());
        for rank in 0..self.ranks.len() {
            let mut draft = Draft {
                chunks: Vec::new(),
                budget: self.limits.max_num_batched_tokens,
                preempted: false,
            };
            self.plan_decodes(rank, &mut draft, updates);
            self.plan_prefills(rank, &mut draft);
            drafts.push(draft);
        }
        self.admit(now, &mut drafts, updates);
        self.finish(drafts)
    }

    fn plan_decodes(&mut self, rank: usize, draft: &mut Draft, updates: &mut Vec<Update>) {
        let decodes: Vec<SequenceId> = self.ranks[rank]
            .running
            .iter()
            .copied()
            .filter(|id| self.sequences[id].wants_decode())
            .collect();
        for id in decodes {
            if draft.budget == 0 {
                break;
            }
            // Decodes are planned oldest first and the newest is preempted: never one that is planned already, but
            // perhaps one that was to follow.
            if !self.ranks[rank].running.contains(&id) {
                continue;
            }
            if let Some(chunk) = self.plan_decode(rank, id, draft, updates) {
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
        id: SequenceId,
        draft: &mut Draft,
        updates: &mut Vec<Update>,
    ) -> Option<Chunk> {
        let needed = self.sequences[&id].blocks_for(1);
        while self.ranks[rank].pool.num_free() < needed {
            let newest = self.ranks[rank].running.last().copied()?;
            self.preempt(newest);
            updates.push(Update::Preempted(newest));
            draft.preempted = true;
            if newest == id {
                return None;
            }
        }
        let blocks = self.ranks[rank].pool.take(needed)?;
        Some(self.sequences.get_mut(&id)?.decode_chunk(blocks))
    }

    fn plan_prefills(&mut self, rank: usize, draft: &mut Draft) {
        let prefills: Vec<SequenceId> = self.ranks[rank]
            .running
            .iter()
            .copied()
            .filter(|id| self.sequences[id].prefill_left() > 0)
            .collect();
        for id in prefills {
            self.plan_prefill(rank, id, draft);
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

    /// Gives waiting sequences a rank, oldest first, until one finds none.
    fn admit(&mut self, now: Duration, drafts: &mut [Draft], updates: &mut Vec<Update>) {
        while let Some(&id) = self.waiting.first() {
            let Some(rank) = self.choose_rank(id, drafts) else { return };
            let Some(sequence) = self.sequences.get_mut(&id) else { return };
            if !sequence.started {
                let waited = now.saturating_sub(sequence.queued_at);
                updates.push(Update::Started { sequence: id, waited });
            }
            sequence.begin(rank);
            self.waiting.remove(&id);
            self.ranks[rank].running.insert(id);
            self.plan_prefill(rank, id, &mut drafts[rank]);
        }
    }

    /// The rank with the most blocks to spare among those that can begin the sequence in this step; then the one with
    /// the fewest sequences, then the lowest.
    fn choose_rank(&self, id: SequenceId, drafts: &[Draft]) -> Option<usize> {
        let sequence = &self.sequences[&id];
        if !sequence.is_settled() {
            return None;
        }
        (0..self.ranks.len())
            .filter(|&rank| {
                drafts[rank].budget > 0
                    && !drafts[rank].preempted
                    && self.ranks[rank].running.len() < self.limits.max_num_seqs
            })
            .filter_map(|rank| Some((rank, self.spare_blocks(rank)?)))
            .filter(|&(_, spare)| spare >= sequence.prefill_blocks())
            .max_by_key(|&(rank, spare)| {
                (spare, Reverse(self.ranks[rank].running.len()), Reverse(rank))
            })
            .map(|(rank, _)| rank)
    }

    /// Free blocks less those that prefills under way will need; `None` when even these are short.
    fn spare_blocks(&self, rank: usize) -> Option<usize> {
        let rank = &self.ranks[rank];
        let set_aside: usize =
            rank.running.iter().map(|id| self.sequences[id].prefill_blocks_left()).sum();
        rank.pool.num_free().checked_sub(set_aside)
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
            .map(|(draft, rank)| RankBatch {
                chunks: draft.chunks,
                released: std::mem::take(&mut rank.released),
            })
            .collect();
        self.in_flight.push_back(self.last_step);
        Some(Batch { step: self.last_step, ranks })
    }
}
