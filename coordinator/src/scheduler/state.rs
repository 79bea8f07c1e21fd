//! The scheduler's state, and how events change it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use switchyard_moe::config::BLOCK_SIZE;
use switchyard_moe::ids::{SequenceId, StepId};

use super::rank::Rank;
use super::sequence::{Sequence, Turn};
use super::{
    Error, Event, Limits, NewSequence, Outcome, RankStats, Sample, Stats, StepPlan, Update,
};
use crate::engine::request::FinishReason;

/// Waiting and running sequences of one model group. See the [module](super) for its rules.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) limits: Limits,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    /// Sequences without a rank, in their order. Preempted ones are older than those of their priority that have never run.
    pub(super) waiting: BTreeSet<Turn>,
    /// Empty without a group.
    pub(super) ranks: Vec<Rank>,
    /// Steps sent and not committed, oldest first.
    pub(super) in_flight: VecDeque<StepId>,
    pub(super) last_step: StepId,
}

// === impl Scheduler ===

impl Scheduler {
    /// A scheduler without sequences and without a group. `limits` hold until there is one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            ranks: Vec::new(),
            in_flight: VecDeque::new(),
            last_step: StepId(0),
        }
    }

    /// Takes in `events` in their order, then plans at most one step. `now` only grows; it is used for nothing but
    /// the waiting times reported.
    pub fn step(&mut self, now: Duration, events: Vec<Event>) -> StepPlan {
        let mut updates = Vec::new();
        for event in events {
            self.take_in(now, event, &mut updates);
        }
        let batch = self.plan(now, &mut updates);
        StepPlan { updates, batch }
    }

    /// Figures for status and metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.sequences.len() - self.waiting.len(),
            waiting: self.waiting.len(),
            ranks: self
                .ranks
                .iter()
                .map(|rank| RankStats {
                    running: rank.running.len(),
                    free_blocks: rank.pool.num_free(),
                    total_blocks: rank.pool.num_blocks(),
                })
                .collect(),
        }
    }

    /// Whether no sequence is known and no step is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.in_flight.is_empty()
    }

    fn take_in(&mut self, now: Duration, event: Event, updates: &mut Vec<Update>) {
        match event {
            Event::Submitted(new) => updates.push(self.submit(now, new)),
            Event::Cancelled(id) => self.remove(id),
            Event::StepCommitted { step, samples } => {
                let committed = self.in_flight.pop_front();
                debug_assert_eq!(committed, Some(step), "out of order");
                for sample in samples {
                    self.commit(sample, updates);
                }
            }
            Event::GroupFormed { world_size, limits } => {
                self.roll_back();
                self.limits = limits;
                self.ranks = (0..world_size).map(|_| Rank::new(self.limits.num_blocks)).collect();
            }
            Event::GroupLost => self.roll_back(),
        }
    }

    fn submit(&mut self, now: Duration, new: NewSequence) -> Update {
        let id = new.id;
        debug_assert!(!new.prompt.is_empty() && new.max_tokens > 0);
        debug_assert!(self.sequences.last_key_value().is_none_or(|(&newest, _)| newest < id));
        let needed = new.prompt.len() + new.max_tokens;
        // The last token of an answer is never computed, so its position needs no block.
        let room = self.limits.num_blocks * BLOCK_SIZE + 1;
        let available = room.min(self.limits.max_model_len);
        if needed > available {
            return Update::Refused(id, Error::TooLong { needed, available });
        }
        let is_ahead =
            |turn: &&Turn| turn.priority == new.priority && !self.sequences[&turn.id].started;
        let waiting = self.waiting.iter().filter(is_ahead).count();
        if waiting >= self.limits.max_waiting {
            return Update::Refused(id, Error::QueueFull { waiting });
        }
        let sequence = Sequence::new(new, now);
        self.waiting.insert(sequence.turn);
        self.sequences.insert(id, sequence);
        Update::Queued(id)
    }

    fn commit(&mut self, sample: Sample, updates: &mut Vec<Update>) {
        let id = sample.sequence;
        // Finished or cancelled since: this is the one extra token.
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        debug_assert_eq!(sequence.next_position(), sample.position, "sequence {id}");
        let token = match sample.outcome {
            Outcome::Drawn(token) => token,
            Outcome::Deferred => {
                // A chunk at position 0 begins a sequence, so one that is back there begins anew.
                if sequence.defer() == Some(0) {
                    self.preempt(id);
                }
                return;
            }
            Outcome::Failed(reason) => {
                self.remove(id);
                return updates.push(Update::Failed(id, reason));
            }
        };
        let finish = sequence.accept(token.token_id);
        if finish != Some(FinishReason::Stop) {
            updates.push(Update::Token(id, token));
        }
        if let Some(reason) = finish {
            self.remove(id);
            updates.push(Update::Finished(id, reason));
        }
    }

    /// Forgets a sequence; its blocks are free at once.
    fn remove(&mut self, id: SequenceId) {
        self.unplace(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            self.waiting.remove(&sequence.turn);
        }
    }

    /// Takes a running sequence off its rank and frees its blocks.
    fn unplace(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(rank) = sequence.rank else { return };
        let rank = &mut self.ranks[rank];
        rank.pool.put(sequence.end());
        rank.running.remove(&sequence.turn);
        rank.released.push(id);
    }

    /// Puts a running sequence back among the waiting.
    pub(super) fn preempt(&mut self, id: SequenceId) {
        self.unplace(id);
        let turn = self.sequences.get(&id).map(|sequence| sequence.turn);
        self.waiting.extend(turn);
    }

    fn roll_back(&mut self) {
        self.in_flight.clear();
        self.last_step = StepId(0);
        self.ranks.clear();
        for sequence in self.sequences.values_mut() {
            sequence.end();
            sequence.forget_outstanding();
            self.waiting.insert(sequence.turn);
        }
    }
}
