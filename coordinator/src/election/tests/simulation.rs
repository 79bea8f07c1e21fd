//! Candidates with clocks of their own, and a network that delays, loses answers and stops whole processes. Whatever it
//! does, no two of them lead at one moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::candidate::{Candidate, Move, Record, Stored, Timing};

/// True time at which the simulation ends, in milliseconds.
const END_MS: u64 = 240_000;
/// How much faster or slower than true time a clock may run, in percent. The times of the lease allow for less than 50 in
/// all between two of them.
const DRIFT_PERCENT: u64 = 15;

/// What happens to a candidate at a moment of true time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// It begins an attempt.
    Begin,
    /// Its question reaches the store.
    Read,
    /// The answer reaches it, and it decides.
    Decide,
    /// Its record reaches the store.
    Write,
    /// It hears that its record is stored.
    Written,
}

/// One attempt's fate.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// Milliseconds that each of the four messages takes.
    delays: [u64; 4],
    /// Whether the last answer is lost.
    is_lost: bool,
    /// Milliseconds until the next attempt; long when the process was stopped.
    pause: u64,
}

#[derive(Debug)]
struct Node {
    candidate: Candidate,
    zero: Instant,
    /// Its clock's speed in percent of true time.
    speed: u64,
    fates: Vec<Fate>,
    attempt: usize,
    began: Instant,
    answer: Option<Stored>,
    record: Option<Record>,
    written: Option<Stored>,
}

impl Node {
    fn new(index: usize, speed: u64, fates: Vec<Fate>, zero: Instant) -> Self {
        Self {
            candidate: Candidate::new(format!("node {index}"), Timing::default()),
            zero,
            speed,
            fates,
            attempt: 0,
            began: zero,
            answer: None,
            record: None,
            written: None,
        }
    }

    fn now(&self, true_ms: u64) -> Instant {
        self.zero + Duration::from_micros(true_ms * self.speed * 10)
    }

    fn leads(&self, true_ms: u64) -> bool {
        self.candidate.leads_until().is_some_and(|until| self.now(true_ms) < until)
    }

    fn fate(&self) -> Fate {
        self.fates[self.attempt % self.fates.len()]
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    let delay = prop_oneof![8 => 1_u64..40, 1 => 40_u64..4000];
    let pause = prop_oneof![9 => Just(2000_u64), 1 => 2000_u64..40_000];
    (prop::array::uniform4(delay), prop::bool::weighted(0.1), pause)
        .prop_map(|(delays, is_lost, pause)| Fate { delays, is_lost, pause })
}

fn nodes() -> impl Strategy<Value = Vec<(u64, Vec<Fate>)>> {
    let speed = 100 - DRIFT_PERCENT..=100 + DRIFT_PERCENT;
    prop::collection::vec((speed, prop::collection::vec(fate(), 1..40)), 2..4)
}

/// Runs to the end. How often the leader changed, or when and how many led at once.
fn run(setups: Vec<(u64, Vec<Fate>)>) -> Result<u32, String> {
    let zero = Instant::now();
    let mut nodes: Vec<Node> = setups
        .into_iter()
        .enumerate()
        .map(|(index, (speed, fates))| Node::new(index, speed, fates, zero))
        .collect();
    let mut stored: Option<Stored> = None;
    let mut num_writes = 0_u64;
    let mut events: BinaryHeap<Reverse<(u64, usize, Event)>> =
        (0..nodes.len()).map(|index| Reverse((index as u64, index, Event::Begin))).collect();
    while let Some(Reverse((at, index, event))) = events.pop() {
        if at > END_MS {
            break;
        }
        let node = &mut nodes[index];
        let now = node.now(at);
        let Fate { delays, is_lost, pause } = node.fate();
        let next = match event {
            Event::Begin => {
                node.began = now;
                (at + delays[0], Event::Read)
            }
            Event::Read => {
                node.answer.clone_from(&stored);
                (at + delays[1], Event::Decide)
            }
            Event::Decide => {
                node.candidate.saw(node.answer.take(), now);
                match node.candidate.next_move(now) {
                    Move::Wait => {
                        node.attempt += 1;
                        (at + pause, Event::Begin)
                    }
                    Move::Write(record) => {
                        node.record = Some(record);
                        (at + delays[2], Event::Write)
                    }
                }
            }
            Event::Write => {
                let version = |stored: &Stored| stored.version.clone();
                let is_fresh = stored.as_ref().map(version) == node.candidate.seen().map(version);
                if let Some(record) = node.record.take().filter(|_| is_fresh) {
                    num_writes += 1;
                    stored = Some(Stored { record, version: num_writes.to_string() });
                    node.written.clone_from(&stored);
                }
                (at + delays[3], Event::Written)
            }
            Event::Written => {
                if let Some(written) = node.written.take().filter(|_| !is_lost) {
                    node.candidate.wrote(written, node.began, now);
                }
                node.attempt += 1;
                (at + pause, Event::Begin)
            }
        };
        events.push(Reverse((next.0, index, next.1)));
        // Leadership only begins at an event, so it is enough to look at those.
        let leaders = nodes.iter().filter(|node| node.leads(at)).count();
        if leaders > 1 {
            return Err(format!("{leaders} lead after {at} ms: {nodes:#?}"));
        }
    }
    Ok(stored.map_or(0, |stored| stored.record.transitions))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_two_lead_at_once(setups in nodes()) {
        if let Err(both) = run(setups) {
            return Err(TestCaseError::fail(both));
        }
    }
}

#[test]
fn the_simulation_has_leaders_that_change() {
    // Each is stopped for half a minute after twenty attempts; the other then goes on.
    let steady = Fate { delays: [5; 4], is_lost: false, pause: 2000 };
    let stopped = Fate { pause: 30_000, ..steady };
    let fates = |before| [vec![steady; before], vec![stopped], vec![steady; 20 - before]].concat();
    let changes = run(vec![(110, fates(20)), (90, fates(10))]);
    assert!(changes.unwrap() >= 3);
}
