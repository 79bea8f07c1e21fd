//! What a sequence gets does not depend on who else is in the batch, on the group, or on its history.

use switchyard_grammar::Grammar;

use super::*;
use crate::sampler::tests::{byte_tokenizer, samplers};
use crate::sampler::{MASK_BUDGET, Samplers};

/// A request: tokens to prefill, how many of them in one chunk, and how to sample.
#[derive(Clone, Debug)]
struct Request {
    tokens: Vec<u32>,
    chunk: usize,
    start: SequenceStart,
}

impl Request {
    fn new(prompt: Vec<u32>, chunk: usize, sampling: SamplingParams) -> Self {
        let start = SequenceStart { prompt_len: prompt.len(), sampling, constraint: None };
        Self { tokens: prompt, chunk, start }
    }
}

fn requests() -> Vec<Request> {
    let hot = |seed, top_p| SamplingParams { temperature: 1.5, top_p, seed, ..greedy() };
    let penalized = SamplingParams {
        presence_penalty: 0.5,
        frequency_penalty: -0.25,
        logit_bias: vec![(17, 2.0), (200, -100.0)],
        top_k: 30,
        min_p: 0.01,
        ..hot(3, 0.9)
    };
    vec![
        Request::new(prompt(1, 3), 64, greedy()),
        Request::new(prompt(2, 140), 33, hot(7, 1.0)),
        Request::new(prompt(3, 60), 9, hot(1 << 40, 0.8)),
        Request::new(prompt(4, 17), 17, greedy()),
        Request::new(prompt(5, 30), 20, penalized),
        constrained(Request::new(prompt(6, 22), 8, hot(9, 1.0))),
    ]
}

/// The same request for digits and commas.
fn constrained(mut request: Request) -> Request {
    let grammar = Grammar::regex("([0-9]{1,3},)+");
    request.start.constraint = Some(Constraint { grammar, after: None, forbidden_before: vec![] });
    request
}

const NUM_NEW: usize = 12;

/// Generates for all requests at once, request i starting in step `i * stagger`; sequences live on rank 0.
fn generate(requests: &[Request], world_size: usize, stagger: usize) -> Vec<Vec<SampledToken>> {
    generate_within(requests, (world_size, stagger), MASK_BUDGET)
}

/// [`generate`] with another budget for masks.
fn generate_within(
    requests: &[Request],
    (world_size, stagger): (usize, usize),
    mask_budget: Duration,
) -> Vec<Vec<SampledToken>> {
    let dir = byte_tokenizer();
    let samplers = || samplers(&dir).with_mask_budget(mask_budget);
    let ranks = mesh(world_size);
    let mut results = thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(ranks)
            .map(|(rank, mut local)| {
                let samplers: Samplers = samplers();
                scope.spawn(move || {
                    let mut model = load(Numerics::Official, rank, world_size);
                    model.samplers = samplers;
                    let owned = if rank == 0 { requests } else { &[] };
                    let mut tokens = vec![Vec::new(); requests.len()];
                    // Samples that are put off take more steps, of which every rank must run as many.
                    let num_steps = if mask_budget < MASK_BUDGET { 400 } else { 60 };
                    for step in 0..num_steps {
                        let batch = next_batch(&model, owned, &tokens, (step, stagger));
                        let result = model.step(StepId(step as u64 + 1), &batch, &mut local);
                        let result = result.unwrap();
                        assert_eq!(result.failed, []);
                        if !result.deferred.is_empty() {
                            // What a real step of a large model takes.
                            thread::sleep(Duration::from_millis(1));
                        }
                        for sample in result.samples {
                            tokens[sample.sequence.0 as usize].push(sample);
                        }
                    }
                    tokens
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    results.remove(0)
}

/// Every request's next chunk.
fn next_batch(
    model: &RankModel,
    requests: &[Request],
    tokens: &[Vec<SampledToken>],
    (step, stagger): (usize, usize),
) -> StepBatch {
    let chunks = requests.iter().enumerate().filter_map(|(i, request)| {
        let id = i as u64;
        let first = model.sequence(SequenceId(id)).map_or(0, Sequence::num_tokens);
        if step < i * stagger || tokens[i].len() == NUM_NEW {
            None
        } else if first >= request.tokens.len() {
            Some(decode(id, first))
        } else {
            let end = request.tokens.len().min(first + request.chunk);
            let sampling = (end == request.tokens.len()).then(greedy);
            let start = (first == 0).then(|| request.start.clone());
            Some(SequenceChunk {
                start,
                ..prefill(id, first, &request.tokens[first..end], sampling)
            })
        }
    });
    batch(chunks.collect())
}

#[test]
fn a_sequence_gets_the_same_bits_alone_and_in_company() {
    let requests = requests();
    let together = generate(&requests, 1, 0);
    for tokens in &together {
        assert_eq!(tokens.len(), NUM_NEW);
    }
    assert_eq!(generate(&requests, 1, 3), together, "staggered");
    assert_eq!(generate(&requests, 3, 1), together, "three ranks");
    for (i, request) in requests.iter().enumerate() {
        let alone = generate(std::slice::from_ref(request), 1, 0);
        let of_first =
            |sample: &SampledToken| SampledToken { sequence: SequenceId(0), ..sample.clone() };
        let expected: Vec<_> = together[i].iter().map(of_first).collect();
        assert_eq!(alone[0], expected, "request {i}");
    }
}

#[test]
fn samples_report_positions_and_probabilities() {
    let tokens = generate(&requests(), 1, 0);
    for (request, tokens) in requests().iter().zip(&tokens) {
        for (i, sample) in tokens.iter().enumerate() {
            assert_eq!(sample.position as usize, request.start.prompt_len + i);
            assert_eq!(sample.top_logprobs.len(), 3);
            assert!(sample.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1), "{sample:?}");
            assert!(sample.logprob <= sample.top_logprobs[0].1 && sample.logprob < 0.0);
            if request.start.sampling.temperature == 0.0 {
                assert_eq!((sample.token_id, sample.logprob), sample.top_logprobs[0]);
            }
        }
    }
    let ids = |i: usize| tokens[i].iter().map(|sample| sample.token_id).collect::<Vec<_>>();
    let other_choice = {
        let mut request = requests().remove(1);
        request.start.sampling.choice = 1;
        generate(&[request], 1, 0)[0].iter().map(|sample| sample.token_id).collect::<Vec<_>>()
    };
    assert_ne!(ids(1), other_choice, "choices of one request differ");
}

#[test]
fn a_replayed_sequence_goes_on_as_if_nothing_had_happened() {
    for request in requests().split_off(2) {
        let undisturbed = generate(std::slice::from_ref(&request), 1, 0).remove(0);
        for cut in [1, 2, 5, 6, 11] {
            // Preempted after some tokens: prompt and tokens are prefilled again, elsewhere in the pool.
            let mut replayed = request.clone();
            replayed.tokens.extend(undisturbed[..cut].iter().map(|sample| sample.token_id));
            let rest = generate(&[replayed], 2, 0).remove(0);
            assert_eq!(rest[..NUM_NEW - cut], undisturbed[cut..], "after {cut} tokens");
        }
    }
}

#[test]
fn a_sample_that_is_put_off_is_the_same_later() {
    let requests = requests();
    let in_time = generate_within(&requests, (1, 0), Duration::from_secs(60));
    let digits: Vec<_> = in_time[5].iter().map(|sample| sample.token_id).collect();
    let is_digit = |&token: &u32| (token as u8).is_ascii_digit() || token == u32::from(b',');
    assert!(digits.iter().all(is_digit), "{digits:?}");
    assert_eq!(generate_within(&requests, (1, 0), Duration::ZERO), in_time);
}

#[test]
fn an_impossible_batch_is_named_and_changes_nothing() {
    let mut model = load(Numerics::Exact, 0, 1);
    let mut local = mesh(1).remove(0);
    let begin = batch(vec![prefill(1, 0, &prompt(1, 20), Some(greedy()))]);
    model.step(StepId(1), &begin, &mut local).unwrap();
    let before = model.sequence(SequenceId(1)).cloned();
    let unknown = batch(vec![decode(1, 20), prefill(2, 5, &[1], None)]);
    let error = model.step(StepId(2), &unknown, &mut local).unwrap_err();
    assert_eq!(error.to_string(), "step 2 cannot run");
    assert!(matches!(
        error,
        Error::Batch { source: kv_cache::Error::UnknownSequence { position: 5, .. }, .. }
    ));
    assert_eq!(model.sequence(SequenceId(1)).cloned(), before);
    model.step(StepId(2), &batch(vec![decode(1, 20)]), &mut local).unwrap();
}

#[test]
fn a_rank_without_sequences_computes_for_others_only() {
    let mut model = load(Numerics::Official, 0, 1);
    let mut local = mesh(1).remove(0);
    let result = model.step(StepId(1), &StepBatch::default(), &mut local).unwrap();
    assert!(result.samples.is_empty());
    assert_eq!(result.timings.num_tokens, 0);
}
