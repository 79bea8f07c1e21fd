use super::*;
use crate::step::SequenceStart;
use proptest::prelude::*;

const LIMITS: CacheLimits =
    CacheLimits { num_blocks: 4, max_num_seqs: 2, max_num_batched_tokens: 200, max_model_len: 300 };
const VOCAB: usize = 10;

fn chunk(sequence: u64, first_position: u32, num: usize, blocks: &[u32]) -> SequenceChunk {
    SequenceChunk {
        sequence: SequenceId(sequence),
        first_position,
        tokens: ChunkTokens::Ids(vec![3; num]),
        new_blocks: blocks.iter().copied().map(BlockId).collect(),
        start: (first_position == 0).then(SequenceStart::default),
        samples: false,
    }
}

fn batch(chunks: Vec<SequenceChunk>) -> StepBatch {
    StepBatch { chunks, released: Vec::new() }
}

/// Runs a batch as a successful step would.
fn run(sequences: &mut Sequences, batch: &StepBatch) {
    sequences.admit(batch, VOCAB).unwrap();
    for chunk in &batch.chunks {
        sequences.commit(chunk.sequence, num_tokens(&chunk.tokens), Some(5));
    }
}

/// Sequence 1 with 100 tokens in block 0.
fn with_one() -> Sequences {
    let mut sequences = Sequences::new(LIMITS);
    run(&mut sequences, &batch(vec![chunk(1, 0, 100, &[0])]));
    sequences
}

fn check_refused(batch: &StepBatch, expected: Error) {
    let mut sequences = with_one();
    assert_eq!(sequences.admit(batch, VOCAB).unwrap_err(), expected);
    let (now, before) = (format!("{sequences:?}"), format!("{:?}", with_one()));
    assert_eq!(now, before, "a refused batch changes nothing");
}

#[test]
fn a_sequence_grows_by_its_chunks() {
    let mut sequences = with_one();
    let decode = SequenceChunk { tokens: ChunkTokens::LastSample, ..chunk(1, 100, 1, &[]) };
    run(&mut sequences, &batch(vec![decode, chunk(2, 0, 130, &[3, 1])]));
    let first = sequences.get(SequenceId(1)).unwrap();
    assert_eq!((first.num_tokens(), first.last_token()), (101, Some(5)));
    let second = sequences.get(SequenceId(2)).unwrap();
    assert_eq!(second.blocks(), [BlockId(3), BlockId(1)]);
    assert_ne!(first.slot(), second.slot());
}

#[test]
fn cells_of_what_ends_in_a_batch_are_free_in_the_same_batch() {
    let mut sequences = with_one();
    run(&mut sequences, &batch(vec![chunk(2, 0, 1, &[1])]));
    let release = StepBatch {
        chunks: vec![chunk(3, 0, 129, &[0, 2]), chunk(2, 0, 2, &[1])],
        released: vec![SequenceId(1)],
    };
    run(&mut sequences, &release);
    assert_eq!(sequences.len(), 2);
    assert_eq!(sequences.get(SequenceId(2)).unwrap().num_tokens(), 2);
    assert!(sequences.get(SequenceId(1)).is_none());
}

#[test]
fn impossible_batches_are_refused_by_name() {
    let (one, two) = (SequenceId(1), SequenceId(2));
    check_refused(
        &batch(vec![chunk(2, 7, 1, &[1])]),
        Error::UnknownSequence { sequence: two, position: 7 },
    );
    check_refused(
        &batch(vec![chunk(1, 99, 1, &[])]),
        Error::PositionGap { sequence: one, expected: 100, actual: 99 },
    );
    check_refused(&batch(vec![chunk(2, 0, 0, &[1])]), Error::EmptyChunk { sequence: two });
    check_refused(
        &batch(vec![chunk(2, 0, 201, &[1, 2])]),
        Error::TooManyTokens { num_tokens: 201, limit: 200 },
    );
    check_refused(
        &batch(vec![chunk(2, 0, 1, &[1]), chunk(3, 0, 1, &[2])]),
        Error::TooManySequences { limit: 2 },
    );
    check_refused(
        &batch(vec![chunk(1, 100, 1, &[]), chunk(1, 101, 1, &[])]),
        Error::TwoChunks { sequence: one },
    );
    check_refused(
        &batch(vec![chunk(1, 100, 29, &[])]),
        Error::BlockCount { sequence: one, num_blocks: 1, needed: 2, most: 3 },
    );
    check_refused(
        &batch(vec![chunk(2, 0, 1, &[1, 2, 3, 1])]),
        Error::BlockCount { sequence: two, num_blocks: 4, needed: 1, most: 3 },
    );
    check_refused(
        &batch(vec![chunk(2, 0, 1, &[4])]),
        Error::UnknownBlock { sequence: two, block: BlockId(4), num_blocks: 4 },
    );
    check_refused(
        &batch(vec![chunk(2, 0, 1, &[0])]),
        Error::BlockInUse { sequence: two, block: BlockId(0) },
    );
    check_refused(
        &batch(vec![chunk(2, 0, 1, &[1, 1])]),
        Error::BlockInUse { sequence: two, block: BlockId(1) },
    );
    let mut foreign = chunk(2, 0, 2, &[1]);
    foreign.tokens = ChunkTokens::Ids(vec![9, 10]);
    let token = Error::TokenId { sequence: two, token_id: 10, vocab_size: VOCAB };
    check_refused(&batch(vec![foreign]), token);
    let nameless = SequenceChunk { start: None, ..chunk(2, 0, 1, &[1]) };
    check_refused(&batch(vec![nameless]), Error::NoStart { sequence: two });
    let again = Some(SequenceStart::default());
    let again = SequenceChunk { start: again, ..chunk(1, 100, 1, &[]) };
    check_refused(&batch(vec![again]), Error::LateStart { sequence: one, position: 100 });
    let fresh = SequenceChunk { tokens: ChunkTokens::LastSample, ..chunk(2, 0, 1, &[1]) };
    check_refused(&batch(vec![fresh]), Error::NoLastSample { sequence: two });
}

#[test]
fn a_sequence_longer_than_the_context_is_refused() {
    let mut sequences = with_one();
    run(&mut sequences, &batch(vec![chunk(1, 100, 200, &[1, 2])]));
    let error = sequences.admit(&batch(vec![chunk(1, 300, 1, &[])]), VOCAB).unwrap_err();
    assert_eq!(error, Error::TooLong { sequence: SequenceId(1), end: 301, limit: 300 });
}

#[test]
fn impossible_sampling_parameters_are_named() {
    let good = SamplingParams { num_top_logprobs: 20, ..SamplingParams::default() };
    check_sampling(SequenceId(1), &good, VOCAB).unwrap();
    let bad = |params: SamplingParams, part: &str| {
        let error = check_sampling(SequenceId(1), &params, VOCAB).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    bad(SamplingParams { temperature: f32::NAN, ..good.clone() }, "temperature NaN");
    bad(SamplingParams { temperature: -0.5, ..good.clone() }, "temperature -0.5");
    bad(SamplingParams { top_p: 0.0, ..good.clone() }, "top_p 0");
    bad(SamplingParams { top_p: 1.5, ..good.clone() }, "top_p 1.5");
    bad(SamplingParams { num_top_logprobs: 21, ..good.clone() }, "21 top_logprobs");
    bad(SamplingParams { min_p: 1.5, ..good.clone() }, "min_p 1.5");
    bad(SamplingParams { presence_penalty: f32::NAN, ..good.clone() }, "penalties NaN and 0");
    let biased = |bias: &[(u32, f32)]| SamplingParams { logit_bias: bias.into(), ..good.clone() };
    bad(biased(&[(10, 1.0)]), "beyond the vocabulary of 10");
    bad(biased(&[(1, f32::INFINITY)]), "no number");
    bad(biased(&[(2, 1.0), (2, 1.0)]), "order");
}

#[test]
fn a_token_without_its_sample_is_computed_again() {
    let mut sequences = with_one();
    let decode =
        |position| SequenceChunk { tokens: ChunkTokens::LastSample, ..chunk(1, position, 1, &[]) };
    sequences.admit(&batch(vec![decode(100)]), VOCAB).unwrap();
    sequences.defer(SequenceId(1), 1, Some(5));
    // Sent before it was known, then after.
    for position in [101, 100] {
        let next = batch(vec![decode(position)]);
        sequences.admit(&next, VOCAB).unwrap();
        sequences.defer(SequenceId(1), 1, Some(5));
        let sequence = sequences.get(SequenceId(1)).unwrap();
        assert_eq!((sequence.num_tokens(), sequence.last_token()), (100, Some(5)));
    }
    let gap = Error::PositionGap { sequence: SequenceId(1), expected: 100, actual: 102 };
    assert_eq!(sequences.admit(&batch(vec![decode(102)]), VOCAB).unwrap_err(), gap);
    run(&mut sequences, &batch(vec![decode(101)]));
    let gap = Error::PositionGap { sequence: SequenceId(1), expected: 101, actual: 102 };
    assert_eq!(sequences.admit(&batch(vec![decode(102)]), VOCAB).unwrap_err(), gap);
}

#[test]
fn a_failed_step_is_undone_or_its_sequence_dropped() {
    let decode = SequenceChunk { tokens: ChunkTokens::LastSample, ..chunk(1, 100, 1, &[2]) };
    let short = batch(vec![decode, chunk(2, 0, 1, &[1])]);
    let mut sequences = with_one();
    sequences.admit(&short, VOCAB).unwrap();
    sequences.abandon(&short);
    assert_eq!(sequences.get(SequenceId(1)), with_one().get(SequenceId(1)));
    assert_eq!(sequences.len(), 1, "what had just begun is gone");
    run(&mut sequences, &short);

    let long = batch(vec![chunk(1, 100, ROLLBACK_TOKENS + 1, &[1])]);
    let mut sequences = with_one();
    sequences.admit(&long, VOCAB).unwrap();
    sequences.abandon(&long);
    assert!(sequences.is_empty(), "its rings are overwritten");
    run(&mut sequences, &batch(vec![chunk(3, 0, 200, &[0, 1])]));
}

proptest! {
    /// Whatever batches arrive, admitted or not, done or failed: no cell is lost and none has two owners.
    #[test]
    fn no_block_and_no_slot_leaks(
        steps in proptest::collection::vec(
            (0u64..4, prop_oneof![Just(0u32), 0u32..40], 1usize..60, proptest::collection::vec(0u32..5, 0..3), any::<bool>(), 0u64..5),
            1..60,
        )
    ) {
        let mut sequences = Sequences::new(LIMITS);
        for (id, position, num, blocks, succeeds, released) in steps {
            let mut batch = batch(vec![chunk(id, position, num, &blocks)]);
            if let Some(sequence) = sequences.get(SequenceId(id)) && position != 0 {
                batch.chunks[0].first_position = sequence.num_tokens() as u32;
            }
            batch.released.push(SequenceId(released));
            if sequences.admit(&batch, VOCAB).is_ok() {
                if succeeds {
                    sequences.commit(SequenceId(id), num, None);
                } else {
                    sequences.abandon(&batch);
                }
            }
            let owned: usize = sequences.sequences.values().map(|s| s.blocks.len()).sum();
            prop_assert_eq!(owned, sequences.owners.iter().flatten().count());
            prop_assert_eq!(sequences.len() + sequences.free_slots.len(), LIMITS.max_num_seqs);
            for (id, sequence) in &sequences.sequences {
                prop_assert!(sequence.blocks.iter().all(|b| sequences.owners[b.0 as usize] == Some(*id)));
                prop_assert!(!sequences.free_slots.contains(&sequence.slot));
            }
        }
    }
}
