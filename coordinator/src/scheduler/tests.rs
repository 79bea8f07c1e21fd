mod harness;
mod priority;

use proptest::collection::vec;
use proptest::prelude::*;
use switchyard_moe::ids::SequenceId;

use super::*;
use harness::{Harness, Op, STOP_TOKEN, limits};

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (1_usize..700, 1_usize..300).prop_map(|(prompt, max)| Op::Submit { prompt, max }),
        2 => (1_usize..40, 1_usize..20).prop_map(|(prompt, max)| Op::Submit { prompt, max }),
        3 => (1_usize..300, 1_usize..200).prop_map(|(prompt, max)| Op::SubmitBatch { prompt, max }),
        1 => any::<prop::sample::Index>().prop_map(Op::Cancel),
        24 => Just(Op::Step),
        20 => Just(Op::Commit),
        4 => any::<u8>().prop_map(Op::CommitWithout),
        1 => Just(Op::CommitFailing),
        1 => prop_oneof![Just(Op::Lose), (1_usize..4).prop_map(Op::Form)],
    ];
    vec(op, 1..400)
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1_usize..6, 1_usize..300, 2_usize..24, 1_usize..12).prop_map(
        |(max_num_seqs, max_num_batched_tokens, num_blocks, max_waiting)| Limits {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len: (num_blocks * 128).min(1_000),
            num_blocks,
            max_waiting,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// All invariants of the harness hold in every state, and every accepted sequence gets exactly the tokens that it
    /// would have got alone.
    #[test]
    fn any_history_keeps_every_promise(limits in any_limits(), world in 1_usize..4, ops in ops()) {
        let mut harness = Harness::new(limits, world);
        for op in ops {
            harness.apply(op);
        }
        harness.finish();
    }
}

/// Takes steps until nothing is left to do; two in flight whenever possible.
fn run(harness: &mut Harness) {
    harness.finish();
}

#[test]
fn two_steps_are_in_flight_and_no_more() {
    let mut scheduler = Scheduler::new(limits());
    let form = Event::GroupFormed { world_size: 1, limits: limits() };
    let new = NewSequence {
        id: SequenceId(1),
        priority: Priority::Interactive,
        prompt: vec![7; 5],
        max_tokens: 9,
        stop_token_ids: vec![],
    };
    let first = scheduler.step(Duration::ZERO, vec![form, Event::Submitted(new)]).batch.unwrap();
    assert_eq!(first.ranks[0].chunks[0].tokens, ChunkTokens::Ids(vec![7; 5]));
    assert!(first.ranks[0].chunks[0].samples);
    let second = scheduler.step(Duration::ZERO, vec![]).batch.unwrap();
    let decode = &second.ranks[0].chunks[0];
    assert_eq!((decode.first_position, &decode.tokens), (5, &ChunkTokens::LastSample));
    assert_eq!(scheduler.step(Duration::ZERO, vec![]).batch, None);
}

#[test]
fn an_answer_is_never_scheduled_past_its_length() {
    let mut harness = Harness::new(limits(), 1);
    harness.apply(Op::Submit { prompt: 4, max: 1 });
    harness.apply(Op::Step);
    // The only sample is outstanding: there is nothing more to compute.
    assert_eq!(harness.step().batch, None);
    run(&mut harness);
}

#[test]
fn a_late_stop_drops_the_extra_token() {
    let mut scheduler = Scheduler::new(limits());
    let new = NewSequence {
        id: SequenceId(1),
        priority: Priority::Interactive,
        prompt: vec![7],
        max_tokens: 100,
        stop_token_ids: vec![STOP_TOKEN],
    };
    let events =
        vec![Event::GroupFormed { world_size: 1, limits: limits() }, Event::Submitted(new)];
    scheduler.step(Duration::ZERO, events);
    scheduler.step(Duration::ZERO, vec![]);
    let sample = |position, token_id| Sample {
        sequence: SequenceId(1),
        position,
        outcome: Outcome::Drawn(GeneratedToken { token_id, logprob: None, top_logprobs: vec![] }),
    };
    let commit = |step, sample| Event::StepCommitted { step: StepId(step), samples: vec![sample] };
    let plan = scheduler.step(Duration::ZERO, vec![commit(1, sample(1, STOP_TOKEN))]);
    assert_eq!(plan.updates, [Update::Finished(SequenceId(1), FinishReason::Stop)]);
    // Nothing is left to compute, but the rank is told to forget the sequence.
    let batch = plan.batch.unwrap();
    assert_eq!(batch.ranks[0].released, [SequenceId(1)]);
    assert!(batch.ranks[0].chunks.is_empty());
    assert_eq!(scheduler.stats().ranks[0].free_blocks, limits().num_blocks);
    let plan = scheduler.step(Duration::ZERO, vec![commit(2, sample(2, 5))]);
    assert_eq!(plan, StepPlan::default());
}

#[test]
fn a_cancelled_sequence_is_gone_with_the_next_step() {
    let mut harness = Harness::new(limits(), 2);
    let id = harness.submit(300, 50);
    harness.apply(Op::Step);
    harness.apply(Op::Step);
    assert!(harness.free_blocks() < 2 * limits().num_blocks);
    harness.cancel(id);
    harness.apply(Op::Commit);
    let batch = harness.step().batch.unwrap();
    assert!(batch.ranks.iter().any(|rank| rank.released == [id]));
    assert_eq!(harness.free_blocks(), 2 * limits().num_blocks);
    run(&mut harness);
}

#[test]
fn a_full_queue_refuses() {
    let limits = Limits { max_waiting: 2, ..limits() };
    let mut scheduler = Scheduler::new(limits);
    let new = |id| {
        Event::Submitted(NewSequence {
            id: SequenceId(id),
            priority: Priority::Interactive,
            prompt: vec![1],
            max_tokens: 1,
            stop_token_ids: vec![],
        })
    };
    let plan = scheduler.step(Duration::ZERO, vec![new(1), new(2), new(3)]);
    assert_eq!(
        plan.updates,
        [
            Update::Queued(SequenceId(1)),
            Update::Queued(SequenceId(2)),
            Update::Refused(SequenceId(3), Error::QueueFull { waiting: 2 }),
        ]
    );
}

#[test]
fn a_sequence_that_could_outgrow_a_rank_is_refused() {
    let limits = Limits { num_blocks: 2, max_model_len: 256, ..limits() };
    for (prompt, max_tokens, fits) in
        [(255, 1, true), (256, 1, false), (1, 255, true), (1, 256, false), (128, 128, true)]
    {
        let mut scheduler = Scheduler::new(limits);
        let new = NewSequence {
            id: SequenceId(1),
            priority: Priority::Interactive,
            prompt: vec![1; prompt],
            max_tokens,
            stop_token_ids: vec![],
        };
        let plan = scheduler.step(Duration::ZERO, vec![Event::Submitted(new)]);
        let queued = plan.updates == [Update::Queued(SequenceId(1))];
        assert_eq!(queued, fits, "{prompt} + {max_tokens}");
    }
}

#[test]
fn sequences_spread_over_ranks() {
    let mut harness = Harness::new(limits(), 4);
    for _ in 0..8 {
        harness.submit(20, 20);
    }
    let batch = harness.step().batch.unwrap();
    let per_rank: Vec<usize> = batch.ranks.iter().map(|rank| rank.chunks.len()).collect();
    assert_eq!(per_rank, [2, 2, 2, 2]);
    run(&mut harness);
}

#[test]
fn decodes_go_first_and_a_prefill_fills_the_budget() {
    let limits = Limits { max_num_batched_tokens: 32, ..limits() };
    let mut harness = Harness::new(limits, 1);
    harness.submit(3, 50);
    harness.apply(Op::Step);
    harness.submit(100, 5);
    let batch = harness.step().batch.unwrap();
    let sizes: Vec<usize> = batch.ranks[0].chunks.iter().map(Chunk::num_tokens).collect();
    assert_eq!(sizes, [1, 31]);
    assert!(!batch.ranks[0].chunks[1].samples);
    run(&mut harness);
}

#[test]
fn preemption_takes_the_newest_and_loses_nothing() {
    // Three sequences of two blocks each as they grow, in a pool of four.
    let limits = Limits { num_blocks: 4, max_model_len: 512, ..limits() };
    let mut harness = Harness::new(limits, 1);
    for _ in 0..3 {
        harness.submit_without_stop(100, 100);
    }
    run(&mut harness);
    assert!(harness.num_preemptions() > 0);
    assert!(!harness.was_preempted(SequenceId(1)), "the oldest is never preempted");
}

#[test]
fn a_group_reset_recomputes_from_accepted_tokens() {
    let mut harness = Harness::new(limits(), 2);
    let ids: Vec<SequenceId> = (0..5).map(|_| harness.submit_without_stop(50, 20)).collect();
    for _ in 0..6 {
        harness.apply(Op::Step);
        harness.apply(Op::Commit);
    }
    let batch = harness.form(1).batch.unwrap();
    let accepted = harness.num_accepted(ids[0]);
    assert!(accepted > 0);
    assert_eq!(batch.step, StepId(1));
    let chunk = &batch.ranks[0].chunks[0];
    assert_eq!((chunk.sequence, chunk.num_tokens()), (ids[0], 50 + accepted));
    run(&mut harness);
}

#[test]
fn one_history_has_one_schedule() {
    let schedule = || {
        let mut harness = Harness::new(limits(), 3);
        let mut plans = Vec::new();
        for round in 0..40 {
            harness.submit(1 + round * 7 % 90, 1 + round * 3 % 40);
            plans.push(harness.step());
            harness.apply(Op::Commit);
        }
        plans
    };
    assert_eq!(schedule(), schedule());
}

#[test]
fn a_group_brings_its_own_limits() {
    let small = Limits { num_blocks: 2, max_model_len: 256, ..limits() };
    let large = Limits { num_blocks: 4, max_model_len: 512, ..limits() };
    let new = NewSequence {
        id: SequenceId(1),
        priority: Priority::Interactive,
        prompt: vec![1; 300],
        max_tokens: 100,
        stop_token_ids: vec![],
    };
    let mut scheduler = Scheduler::new(small);
    let form = Event::GroupFormed { world_size: 1, limits: large };
    let plan = scheduler.step(Duration::ZERO, vec![form, Event::Submitted(new)]);
    assert_eq!(plan.updates[0], Update::Queued(SequenceId(1)));
    assert_eq!(scheduler.stats().ranks[0].total_blocks, 4);
}
