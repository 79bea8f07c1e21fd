//! A scheduler between random clients and simulated ranks, which check every promise that the scheduler makes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::sample::Index;
use switchyard_moe::capacity;

use super::super::sequence::Turn;
use super::*;

pub(super) const STOP_TOKEN: u32 = 0;
const VOCAB: u64 = 61;

pub(super) fn limits() -> Limits {
    Limits {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 1_000,
        num_blocks: 16,
        max_waiting: 100,
    }
}

/// What happens next.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Submit {
        prompt: usize,
        max: usize,
    },
    SubmitBatch {
        prompt: usize,
        max: usize,
    },
    Cancel(Index),
    /// Tells the scheduler what has happened, and sends the step that it plans.
    Step,
    /// The ranks finish the oldest step in flight.
    Commit,
    /// The ranks finish it without some samples: that of sequence i if bit i % 8 is set.
    CommitWithout(u8),
    /// The ranks finish it, and can sample no more for its lowest sequence.
    CommitFailing,
    Lose,
    Form(usize),
}

#[derive(Debug)]
pub(super) struct Harness {
    limits: Limits,
    scheduler: Scheduler,
    events: Vec<Event>,
    in_flight: VecDeque<Batch>,
    ranks: Vec<SimRank>,
    clients: BTreeMap<SequenceId, Client>,
    /// By priority.
    last_started: BTreeMap<Priority, SequenceId>,
    preempted: Vec<SequenceId>,
}

/// What one client asked for, and what it should and did get.
#[derive(Debug)]
struct Client {
    priority: Priority,
    num_prompt: usize,
    max_tokens: usize,
    expected: Vec<u32>,
    got: Vec<u32>,
    state: ClientState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Submitted,
    Queued,
    Refused,
    Cancelled,
    Finished,
    Failed,
}

/// What a rank does when it should sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draw {
    Now,
    Later,
    Never,
}

/// One rank, which runs its batches in order.
#[derive(Debug, Default)]
struct SimRank {
    sequences: BTreeMap<SequenceId, SimSequence>,
}

#[derive(Debug, Default)]
struct SimSequence {
    /// Tokens whose positions have been computed.
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
    last_sample: Option<u32>,
    /// Whether the last chunk had no sample.
    is_deferred: bool,
}

/// The model: a function of all tokens so far.
fn next_token(tokens: &[u32]) -> u32 {
    let hash = tokens.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3)
    });
    ((hash >> 17) % VOCAB) as u32
}

/// The answer that a sequence gets alone.
fn answer(prompt: &[u32], max_tokens: usize, stops: &[u32]) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_tokens {
        let next = next_token(&tokens);
        if stops.contains(&next) {
            break;
        }
        tokens.push(next);
    }
    tokens.split_off(prompt.len())
}

impl Harness {
    pub(super) fn new(limits: Limits, world_size: usize) -> Self {
        let mut harness = Self {
            limits,
            scheduler: Scheduler::new(limits),
            events: Vec::new(),
            in_flight: VecDeque::new(),
            ranks: Vec::new(),
            clients: BTreeMap::new(),
            last_started: BTreeMap::new(),
            preempted: Vec::new(),
        };
        harness.apply(Op::Form(world_size));
        harness
    }

    pub(super) fn apply(&mut self, op: Op) {
        match op {
            Op::Submit { prompt, max } => {
                self.submit(prompt, max);
            }
            Op::SubmitBatch { prompt, max } => {
                self.submit_batch(prompt, max);
            }
            Op::Cancel(index) => {
                if !self.clients.is_empty() {
                    let id = *self.clients.keys().nth(index.index(self.clients.len())).unwrap();
                    self.cancel(id);
                }
            }
            Op::Step => {
                self.step();
            }
            Op::Commit => self.commit(|_| Draw::Now),
            Op::CommitWithout(bits) => self.commit(|id| match bits >> (id.0 % 8) & 1 {
                0 => Draw::Now,
                _ => Draw::Later,
            }),
            Op::CommitFailing => {
                let ranks = self.in_flight.front().map(|batch| batch.ranks.as_slice());
                let chunks = ranks.unwrap_or_default().iter().flat_map(|rank| &rank.chunks);
                let sampled = chunks.filter(|chunk| chunk.samples).map(|chunk| chunk.sequence);
                let victim = sampled.min();
                self.commit(|id| if Some(id) == victim { Draw::Never } else { Draw::Now });
            }
            Op::Lose => {
                self.events.push(Event::GroupLost);
                self.reset(0);
            }
            Op::Form(world_size) => {
                self.form(world_size);
            }
        }
    }

    pub(super) fn form(&mut self, world_size: usize) -> StepPlan {
        self.events.push(Event::GroupFormed { world_size, limits: self.limits });
        self.reset(world_size)
    }

    /// The group changes: the scheduler hears of it before anything else can happen to its steps.
    fn reset(&mut self, world_size: usize) -> StepPlan {
        self.in_flight.clear();
        self.ranks = (0..world_size).map(|_| SimRank::default()).collect();
        self.step()
    }

    pub(super) fn submit(&mut self, prompt: usize, max: usize) -> SequenceId {
        self.submit_with(Priority::Interactive, (prompt, max), vec![STOP_TOKEN])
    }

    pub(super) fn submit_without_stop(&mut self, prompt: usize, max: usize) -> SequenceId {
        self.submit_with(Priority::Interactive, (prompt, max), vec![])
    }

    pub(super) fn submit_batch(&mut self, prompt: usize, max: usize) -> SequenceId {
        self.submit_with(Priority::Batch, (prompt, max), vec![STOP_TOKEN])
    }

    pub(super) fn submit_with(
        &mut self,
        priority: Priority,
        (len, max_tokens): (usize, usize),
        stops: Vec<u32>,
    ) -> SequenceId {
        let id = SequenceId(self.clients.len() as u64 + 1);
        let prompt: Vec<u32> =
            (0..len as u64).map(|i| ((i * 31 + id.0 * 17) % VOCAB) as u32).collect();
        let client = Client {
            priority,
            num_prompt: len,
            max_tokens,
            expected: answer(&prompt, max_tokens, &stops),
            got: Vec::new(),
            state: ClientState::Submitted,
        };
        self.clients.insert(id, client);
        self.events.push(Event::Submitted(NewSequence {
            id,
            priority,
            prompt,
            max_tokens,
            stop_token_ids: stops,
        }));
        id
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.events.push(Event::Cancelled(id));
        let client = self.clients.get_mut(&id).unwrap();
        if matches!(client.state, ClientState::Submitted | ClientState::Queued) {
            client.state = ClientState::Cancelled;
        }
    }

    pub(super) fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.step(Duration::ZERO, std::mem::take(&mut self.events));
        for update in &plan.updates {
            self.hear(update);
        }
        self.check_blocks();
        if let Some(batch) = &plan.batch {
            self.check_batch(batch);
            self.in_flight.push_back(batch.clone());
        }
        assert!(self.in_flight.len() <= STEPS_IN_FLIGHT_MAX);
        if self.in_flight.is_empty() && !self.ranks.is_empty() {
            let stats = self.scheduler.stats();
            assert_eq!(
                stats.running + stats.waiting,
                0,
                "work, but no step: {:#?}",
                self.scheduler
            );
        }
        plan
    }

    /// Runs everything to its end; the bound catches a livelock.
    pub(super) fn finish(&mut self) {
        if self.ranks.is_empty() {
            self.apply(Op::Form(1));
        }
        let work: usize = self.clients.values().map(|c| c.num_prompt + c.max_tokens).sum();
        for _ in 0..4 * work + 100 {
            self.step();
            self.commit(|_| Draw::Now);
            if self.scheduler.is_idle() && self.events.is_empty() && self.in_flight.is_empty() {
                break;
            }
        }
        assert!(self.scheduler.is_idle(), "no end: {:#?}", self.scheduler.stats());
        assert_eq!(self.free_blocks(), self.ranks.len() * self.limits.num_blocks);
        for (id, client) in &self.clients {
            match client.state {
                ClientState::Finished => assert_eq!(client.got, client.expected, "{id}"),
                ClientState::Refused => assert!(client.got.is_empty(), "{id}"),
                ClientState::Cancelled | ClientState::Failed => {
                    assert!(client.expected.starts_with(&client.got), "{id}");
                }
                ClientState::Submitted | ClientState::Queued => panic!("{id} was forgotten"),
            }
        }
        for rank in &self.ranks {
            assert!(rank.sequences.is_empty(), "the rank still holds {:?}", rank.sequences.keys());
        }
    }

    pub(super) fn free_blocks(&self) -> usize {
        self.scheduler.stats().ranks.iter().map(|rank| rank.free_blocks).sum()
    }

    pub(super) fn num_accepted(&self, id: SequenceId) -> usize {
        self.clients[&id].got.len()
    }

    pub(super) fn num_preemptions(&self) -> usize {
        self.preempted.len()
    }

    pub(super) fn was_preempted(&self, id: SequenceId) -> bool {
        self.preempted.contains(&id)
    }

    fn hear(&mut self, update: &Update) {
        let state = |client: &Client| client.state;
        match update {
            Update::Queued(id) | Update::Refused(id, _) => {
                let client = self.clients.get_mut(id).unwrap();
                if state(client) == ClientState::Submitted {
                    let queued = matches!(update, Update::Queued(_));
                    client.state = if queued { ClientState::Queued } else { ClientState::Refused };
                }
            }
            Update::Started { sequence, .. } => {
                let priority = self.clients[sequence].priority;
                let last = self.last_started.insert(priority, *sequence);
                assert!(last < Some(*sequence), "{sequence} started out of order");
            }
            Update::Preempted(id) => self.preempted.push(*id),
            Update::Token(id, token) => {
                // A cancellation and a commit may reach the scheduler together, in either order.
                self.clients.get_mut(id).unwrap().got.push(token.token_id);
            }
            Update::Finished(id, reason) => {
                let client = self.clients.get_mut(id).unwrap();
                let is_length = client.expected.len() == client.max_tokens;
                assert_eq!(*reason == FinishReason::Length, is_length, "{id}");
                if client.state == ClientState::Queued {
                    client.state = ClientState::Finished;
                }
            }
            Update::Failed(id, reason) => {
                assert_eq!(reason, "for a test");
                let client = self.clients.get_mut(id).unwrap();
                if client.state == ClientState::Queued {
                    client.state = ClientState::Failed;
                }
            }
        }
    }

    /// Used and free blocks are all blocks, and nobody shares one.
    fn check_blocks(&self) {
        for (index, rank) in self.scheduler.ranks.iter().enumerate() {
            let mut used = BTreeSet::new();
            for Turn { id, .. } in &rank.running {
                let sequence = &self.scheduler.sequences[id];
                assert_eq!(sequence.rank, Some(index));
                let table = sequence.block_table();
                // One more where a sample that was put off took a position back.
                let needed = capacity::num_blocks(sequence.num_scheduled());
                assert!((needed..=needed + 1).contains(&table.len()), "{id}");
                for block in table {
                    assert!(used.insert(*block), "block {block} is held twice");
                }
            }
            assert_eq!(used.len() + rank.pool.num_free(), self.limits.num_blocks);
        }
    }

    fn check_batch(&self, batch: &Batch) {
        assert_eq!(batch.ranks.len(), self.ranks.len());
        for rank in &batch.ranks {
            let tokens: usize = rank.chunks.iter().map(Chunk::num_tokens).sum();
            assert!(tokens <= self.limits.max_num_batched_tokens, "{tokens} tokens");
            for chunk in &rank.chunks {
                let client = &self.clients[&chunk.sequence];
                let id = chunk.sequence;
                assert!(matches!(client.state, ClientState::Queued), "{id}: {:?}", client.state);
                if chunk.samples {
                    let last = client.num_prompt + client.max_tokens - 1;
                    assert!(chunk.sample_position() <= last, "{} goes too far", chunk.sequence);
                }
            }
        }
    }

    fn commit(&mut self, draw: impl Fn(SequenceId) -> Draw) {
        let Some(batch) = self.in_flight.pop_front() else { return };
        let mut samples = Vec::new();
        for (rank, part) in self.ranks.iter_mut().zip(batch.ranks) {
            samples.extend(rank.run(part, &self.limits, &draw));
        }
        self.events.push(Event::StepCommitted { step: batch.step, samples });
    }
}

impl SimRank {
    fn run(
        &mut self,
        batch: RankBatch,
        limits: &Limits,
        draw: &impl Fn(SequenceId) -> Draw,
    ) -> Vec<Sample> {
        for id in &batch.released {
            assert!(self.sequences.remove(id).is_some(), "{id} released, but not held");
        }
        let mut samples = Vec::new();
        for chunk in batch.chunks {
            let id = chunk.sequence;
            for block in &chunk.new_blocks {
                assert!((block.0 as usize) < limits.num_blocks, "block {block} does not exist");
                let owner = self.sequences.iter().find(|(_, held)| held.blocks.contains(block));
                assert!(owner.is_none(), "block {block} for {id} is held by {owner:?}");
            }
            if chunk.first_position == 0 {
                let held = self.sequences.insert(id, SimSequence::default());
                assert!(held.is_none(), "{id} began twice");
            }
            let sequence = self.sequences.get_mut(&id).expect("a sequence that has begun");
            samples.extend(sequence.run(chunk, draw(id)));
        }
        assert!(self.sequences.len() <= limits.max_num_seqs, "{} sequences", self.sequences.len());
        samples
    }
}

impl SimSequence {
    fn run(&mut self, chunk: Chunk, draw: Draw) -> Option<Sample> {
        let id = chunk.sequence;
        let is_decode = chunk.tokens == ChunkTokens::LastSample;
        let is_ahead =
            self.is_deferred && is_decode && chunk.first_position == self.tokens.len() + 1;
        assert!(
            is_ahead || chunk.first_position == self.tokens.len(),
            "{id}: a gap, or a position twice"
        );
        match chunk.tokens {
            ChunkTokens::Ids(ids) => self.tokens.extend(ids),
            ChunkTokens::LastSample => self.tokens.push(self.last_sample.take().unwrap()),
        }
        self.blocks.extend(chunk.new_blocks);
        assert!(self.blocks.len() >= capacity::num_blocks(self.tokens.len()), "{id}: blocks");
        self.is_deferred = chunk.samples && draw != Draw::Now;
        let position = self.tokens.len();
        let outcome = match draw {
            Draw::Now => {
                let token_id = next_token(&self.tokens);
                self.last_sample = Some(token_id);
                Outcome::Drawn(GeneratedToken { token_id, logprob: None, top_logprobs: vec![] })
            }
            Draw::Later => Outcome::Deferred,
            Draw::Never => Outcome::Failed("for a test".to_owned()),
        };
        if self.is_deferred {
            self.last_sample = self.tokens.pop();
        }
        chunk.samples.then_some(Sample { sequence: id, position, outcome })
    }
}
