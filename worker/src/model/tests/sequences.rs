//! What a sequence gets does not depend on who else is in the batch, on the group, or on its history.

use super::*;

/// A request: prompt length, prefill chunk, and how to sample.
#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    chunk: usize,
    sampling: SamplingParams,
}

fn requests() -> Vec<Request> {
    let hot = |seed, top_p| SamplingParams { temperature: 1.5, top_p, seed, ..greedy() };
    vec![
        Request { prompt: prompt(1, 3), chunk: 64, sampling: greedy() },
        Request { prompt: prompt(2, 140), chunk: 33, sampling: hot(7, 1.0) },
        Request { prompt: prompt(3, 60), chunk: 9, sampling: hot(1 << 40, 0.8) },
        Request { prompt: prompt(4, 17), chunk: 17, sampling: greedy() },
    ]
}

const NUM_NEW: usize = 12;

/// Generates for all requests at once, request i starting in step `i * stagger`; sequences live on rank 0.
fn generate(requests: &[Request], world_size: usize, stagger: usize) -> Vec<Vec<SampledToken>> {
    let ranks = mesh(world_size);
    let mut results = thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(ranks)
            .map(|(rank, mut local)| {
                scope.spawn(move || {
                    let mut model = load(Numerics::Official, rank, world_size);
                    let owned = if rank == 0 { requests } else { &[] };
                    let mut tokens = vec![Vec::new(); requests.len()];
                    for step in 0..60 {
                        let batch = next_batch(&model, owned, &tokens, (step, stagger));
                        let result = model.step(StepId(step as u64 + 1), &batch, &mut local);
                        for sample in result.unwrap().samples {
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
        let sampling = request.sampling.clone();
        if step < i * stagger || tokens[i].len() == NUM_NEW {
            None
        } else if first >= request.prompt.len() {
            Some(decode(id, first, sampling))
        } else {
            let end = request.prompt.len().min(first + request.chunk);
            let sampling = (end == request.prompt.len()).then_some(sampling);
            Some(prefill(id, first, &request.prompt[first..end], sampling))
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
            assert_eq!(sample.position as usize, request.prompt.len() + i);
            assert_eq!(sample.top_logprobs.len(), 3);
            assert!(sample.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1), "{sample:?}");
            assert!(sample.logprob <= sample.top_logprobs[0].1 && sample.logprob < 0.0);
            if request.sampling.temperature == 0.0 {
                assert_eq!((sample.token_id, sample.logprob), sample.top_logprobs[0]);
            }
        }
    }
    let ids = |i: usize| tokens[i].iter().map(|sample| sample.token_id).collect::<Vec<_>>();
    let other_choice = {
        let mut request = requests().remove(1);
        request.sampling.choice = 1;
        generate(&[request], 1, 0)[0].iter().map(|sample| sample.token_id).collect::<Vec<_>>()
    };
    assert_ne!(ids(1), other_choice, "choices of one request differ");
}

#[test]
fn a_replayed_sequence_goes_on_as_if_nothing_had_happened() {
    let mut request = requests().remove(2);
    let undisturbed = generate(std::slice::from_ref(&request), 1, 0).remove(0);
    // Preempted after five tokens: prompt and tokens are prefilled again, elsewhere in the pool.
    request.prompt.extend(undisturbed[..5].iter().map(|sample| sample.token_id));
    let rest = generate(&[request], 2, 0).remove(0);
    assert_eq!(rest[..NUM_NEW - 5], undisturbed[5..]);
}

#[test]
fn an_impossible_batch_is_named_and_changes_nothing() {
    let mut model = load(Numerics::Exact, 0, 1);
    let mut local = mesh(1).remove(0);
    let begin = batch(vec![prefill(1, 0, &prompt(1, 20), Some(greedy()))]);
    model.step(StepId(1), &begin, &mut local).unwrap();
    let before = model.sequence(SequenceId(1)).cloned();
    let unknown = batch(vec![decode(1, 20, greedy()), prefill(2, 5, &[1], None)]);
    let error = model.step(StepId(2), &unknown, &mut local).unwrap_err();
    assert_eq!(error.to_string(), "step 2 cannot run");
    assert!(matches!(
        error,
        Error::Batch { source: kv_cache::Error::UnknownSequence { position: 5, .. }, .. }
    ));
    assert_eq!(model.sequence(SequenceId(1)).cloned(), before);
    model.step(StepId(2), &batch(vec![decode(1, 20, greedy())]), &mut local).unwrap();
}

#[test]
fn a_rank_without_sequences_computes_for_others_only() {
    let mut model = load(Numerics::Official, 0, 1);
    let mut local = mesh(1).remove(0);
    let result = model.step(StepId(1), &StepBatch::default(), &mut local).unwrap();
    assert!(result.samples.is_empty());
    assert_eq!(result.timings.num_tokens, 0);
}
