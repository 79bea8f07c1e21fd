//! Batches get what is left, and no more.

use super::*;

/// Something that arrives, and in which round.
#[derive(Clone, Debug)]
struct Arrival {
    round: usize,
    prompt: usize,
    max: usize,
}

/// A chunk of an interactive sequence: the round, the sequence by its arrival, where it begins and its length.
type Planned = (usize, usize, usize, usize);

fn arrivals(max: usize) -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0_usize..60, 1_usize..300, 1_usize..120);
    vec(arrival.prop_map(|(round, prompt, max)| Arrival { round, prompt, max }), 0..max)
}

/// Runs everything on one rank, each step to its end before the next is planned.
fn interactive_chunks(
    limits: Limits,
    interactive: &[Arrival],
    batches: &[Arrival],
) -> Vec<Planned> {
    let mut harness = Harness::new(limits, 1);
    let mut ids = Vec::new();
    let mut planned = Vec::new();
    for round in 0.. {
        for Arrival { prompt, max, .. } in batches.iter().filter(|it| it.round == round) {
            harness.submit_batch(*prompt, *max);
        }
        for Arrival { prompt, max, .. } in interactive.iter().filter(|it| it.round == round) {
            ids.push(harness.submit_without_stop(*prompt, *max));
        }
        let plan = harness.step();
        for chunk in plan.batch.iter().flat_map(|batch| &batch.ranks[0].chunks) {
            if let Some(index) = ids.iter().position(|id| *id == chunk.sequence) {
                planned.push((round, index, chunk.first_position, chunk.num_tokens()));
            }
        }
        harness.apply(Op::Commit);
        if plan.batch.is_none() && round > 60 {
            break;
        }
    }
    harness.finish();
    planned
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// What somebody waits for is computed in the very same steps, whatever batches run beside it.
    #[test]
    fn batches_do_not_delay_anybody(
        limits in any_limits(),
        interactive in arrivals(8),
        batches in arrivals(12),
    ) {
        let alone = interactive_chunks(limits, &interactive, &[]);
        prop_assert_eq!(interactive_chunks(limits, &interactive, &batches), alone);
    }
}

#[test]
fn an_interactive_sequence_takes_the_place_of_the_newest_of_a_batch() {
    let limits = Limits { max_num_seqs: 2, ..limits() };
    let mut harness = Harness::new(limits, 1);
    let (first, second) = (harness.submit_batch(20, 50), harness.submit_batch(20, 50));
    harness.apply(Op::Step);
    harness.apply(Op::Commit);
    let waited_for = harness.submit(10, 5);
    let plan = harness.step();
    assert!(plan.updates.contains(&Update::Preempted(second)), "{:?}", plan.updates);
    let batch = plan.batch.unwrap();
    let computed: Vec<_> = batch.ranks[0].chunks.iter().map(|chunk| chunk.sequence).collect();
    assert_eq!(computed, [first, waited_for], "a decode, then a prefill");
    assert!(!harness.was_preempted(first));
    run(&mut harness);
}

#[test]
fn a_batch_prefills_with_the_tokens_that_are_left() {
    let limits = Limits { max_num_batched_tokens: 32, ..limits() };
    let mut harness = Harness::new(limits, 1);
    let batch = harness.submit_batch(200, 5);
    harness.apply(Op::Step);
    let waited_for = harness.submit(30, 5);
    let chunks = harness.step().batch.unwrap().ranks.remove(0).chunks;
    let sizes: Vec<_> = chunks.iter().map(|chunk| (chunk.sequence, chunk.num_tokens())).collect();
    assert_eq!(sizes, [(waited_for, 30), (batch, 2)]);
    run(&mut harness);
}

#[test]
fn a_long_queue_of_batches_keeps_nobody_out() {
    let limits = Limits { max_waiting: 1, ..limits() };
    let mut scheduler = Scheduler::new(limits);
    let new = |id, priority| {
        let id = SequenceId(id);
        let (prompt, stop_token_ids) = (vec![1], vec![]);
        Event::Submitted(NewSequence { id, priority, prompt, max_tokens: 1, stop_token_ids })
    };
    let events =
        vec![new(1, Priority::Batch), new(2, Priority::Batch), new(3, Priority::Interactive)];
    let updates = scheduler.step(Duration::ZERO, events).updates;
    assert_eq!(updates[1], Update::Refused(SequenceId(2), Error::QueueFull { waiting: 1 }));
    assert_eq!(updates[2], Update::Queued(SequenceId(3)));
}
