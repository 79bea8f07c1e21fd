use proptest::prelude::*;

use super::*;

const NUM_LAYERS: usize = 1;
const NUM_EXPERTS: usize = 4;

fn load_request() -> proto::LoadRequest {
    proto::LoadRequest {
        rank: 1,
        world_size: 2,
        placement: Some(proto::Placement {
            layers: vec![proto::LayerPlacement {
                slots_per_rank: 3,
                physical_to_logical: vec![0, 1, -1, 2, 3, 0],
            }],
        }),
        limits: Some(proto::CacheLimits {
            num_blocks: 8,
            max_num_seqs: 4,
            max_num_batched_tokens: 64,
            max_model_len: 256,
        }),
    }
}

fn group_request() -> proto::FormGroupRequest {
    let peer = |rank| proto::Peer { rank, data_address: format!("10.0.0.{rank}:7000") };
    proto::FormGroupRequest {
        epoch: 3,
        rank: 1,
        peers: vec![peer(0), peer(1)],
        placement: load_request().placement,
        deadline_ms: 1000,
    }
}

fn batch_message() -> proto::RankBatch {
    proto::RankBatch {
        epoch: 3,
        step: 7,
        chunks: vec![proto::SequenceChunk {
            sequence_id: 9,
            first_position: 5,
            tokens: Some(Tokens::TokenIds(proto::TokenIds { ids: vec![1, 2] })),
            new_blocks: vec![4],
            start: Some(proto::SequenceStart {
                prompt_len: 1,
                sampling: Some(proto::SamplingParams {
                    temperature: 0.5,
                    top_p: 0.9,
                    top_k: 4,
                    min_p: 0.25,
                    presence_penalty: 1.0,
                    frequency_penalty: -1.0,
                    logit_bias: vec![proto::TokenBias { token_id: 3, bias: 2.0 }],
                    seed: 11,
                    choice: 1,
                    logprobs: true,
                    num_top_logprobs: 2,
                }),
                constraint: Some(proto::Constraint {
                    grammar: "start: \"a\"".to_owned(),
                    after: Some(5),
                    forbidden_before: vec![1],
                }),
            }),
            samples: true,
        }],
        released_sequence_ids: vec![8],
        traces: vec![proto::TraceContext { trace_id: vec![1; 16], span_id: vec![2; 8] }],
    }
}

#[test]
fn a_load_request_becomes_a_plan() {
    let plan = plan(load_request(), NUM_LAYERS, NUM_EXPERTS).unwrap();
    assert_eq!(plan.rank, EpRank(1));
    let expert = |id| Some(LogicalExpertId(id));
    assert_eq!(plan.placement.layers()[0].experts_of(EpRank(1)), [expert(2), expert(3), expert(0)]);
    assert_eq!(plan.limits.max_model_len, 256);
}

#[test]
fn a_load_request_names_its_wrong_field() {
    let check = |change: fn(&mut proto::LoadRequest), expected: &str| {
        let mut request = load_request();
        change(&mut request);
        let error = plan(request, NUM_LAYERS, NUM_EXPERTS).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(|load| load.rank = 2, "rank: is 2, the group has 2 ranks");
    check(|load| load.world_size = 0, "world_size: 0 ranks, must be 1..=1024");
    check(|load| load.placement = None, "placement: is missing");
    check(|load| load.limits = None, "limits: is missing");
    check(|load| load.limits.as_mut().unwrap().num_blocks = 0, "limits.num_blocks: is 0");
    check(
        |load| load.placement.as_mut().unwrap().layers.clear(),
        "placement.layers: has 0, the model has 1",
    );
    check(
        |load| load.placement.as_mut().unwrap().layers[0].physical_to_logical[0] = -2,
        "placement.layers[0].physical_to_logical: has -2; -1 marks an empty slot",
    );
    check(
        |load| load.placement.as_mut().unwrap().layers[0].physical_to_logical[1] = 4,
        "placement: layer 0: slot 1 holds expert 4, but the model has 4",
    );
    check(
        |load| load.placement.as_mut().unwrap().layers[0].slots_per_rank = u32::MAX,
        "placement: layer 0: 6 slots cannot be 4294967295 on each of 2 ranks",
    );
}

#[test]
fn a_form_group_request_becomes_a_plan_or_names_its_wrong_field() {
    let plan = group(group_request(), NUM_LAYERS, NUM_EXPERTS).unwrap();
    assert_eq!(plan.peers, ["10.0.0.0:7000", "10.0.0.1:7000"]);
    assert_eq!(plan.deadline, Duration::from_secs(1));

    let check = |change: fn(&mut proto::FormGroupRequest), expected: &str| {
        let mut request = group_request();
        change(&mut request);
        let error = group(request, NUM_LAYERS, NUM_EXPERTS).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(|form| form.epoch = 0, "epoch: is 0, which means no group");
    check(|form| form.deadline_ms = 0, "deadline_ms: is 0, must be 1..=600000");
    check(|form| form.peers.clear(), "world_size: 0 ranks, must be 1..=1024");
    check(|form| form.peers.swap(0, 1), "peers[0]: has rank 1, peers are in rank order");
    check(
        |form| form.peers[1].data_address = "nowhere".to_owned(),
        "peers[1].data_address: \"nowhere\" is not host:port",
    );
}

#[test]
fn a_batch_is_read_as_it_is_written() {
    let Step { epoch, step, batch, traces } = batch(batch_message()).unwrap();
    assert_eq!((epoch, step), (GroupEpoch(3), StepId(7)));
    assert_eq!(traces, [Trace::new(&[1; 16], &[2; 8]).unwrap()]);
    assert_eq!(batch.released, [SequenceId(8)]);
    let chunk = &batch.chunks[0];
    assert_eq!(chunk.sequence, SequenceId(9));
    assert_eq!(chunk.first_position, 5);
    assert_eq!(chunk.tokens, ChunkTokens::Ids(vec![1, 2]));
    assert_eq!(chunk.new_blocks, [BlockId(4)]);
    assert!(chunk.samples);
    let expected = SequenceStart {
        prompt_len: 1,
        sampling: SamplingParams {
            temperature: 0.5,
            min_p: 0.25,
            top_k: 4,
            top_p: 0.9,
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            logit_bias: vec![(3, 2.0)],
            seed: 11,
            choice: 1,
            logprobs: true,
            num_top_logprobs: 2,
        },
        constraint: Some(Constraint {
            grammar: Grammar::lark("start: \"a\""),
            after: Some(5),
            forbidden_before: vec![1],
        }),
    };
    assert_eq!(chunk.start, Some(expected));
}

#[test]
fn a_batch_names_its_wrong_field() {
    let check = |change: fn(&mut Vec<proto::TraceContext>), expected: &str| {
        let mut message = batch_message();
        change(&mut message.traces);
        assert_eq!(batch(message).unwrap_err().to_string(), expected);
    };
    check(|traces| traces[0].span_id.clear(), "traces[0]: is no span of a trace");
    check(|traces| *traces = vec![traces[0].clone(); 5], "traces: has 5, at most 4 are told");
    let check = |change: fn(&mut proto::SequenceChunk), expected: &str| {
        let mut message = batch_message();
        change(&mut message.chunks[0]);
        assert_eq!(batch(message).unwrap_err().to_string(), expected);
    };
    check(|chunk| chunk.tokens = None, "chunks[0].tokens: is missing");
    check(
        |chunk| chunk.tokens = Some(Tokens::TokenIds(proto::TokenIds::default())),
        "chunks[0].token_ids: is empty",
    );
    check(
        |chunk| chunk.start.as_mut().unwrap().sampling = None,
        "chunks[0].start.sampling: is missing",
    );
}

#[test]
fn a_result_is_written_whole() {
    let timings = StepTimings {
        total: 1.0,
        attention: 2.0,
        dispatch: 3.0,
        experts: 4.0,
        combine: 5.0,
        head: 6.0,
        num_tokens: 7,
    };
    let sample = SampledToken {
        sequence: SequenceId(9),
        position: 6,
        token_id: 42,
        logprob: -0.5,
        top_logprobs: vec![(42, -0.5), (1, -1.5)],
    };
    let result = StepResult {
        samples: vec![sample],
        deferred: vec![SequenceId(5)],
        failed: vec![(SequenceId(6), "why".to_owned())],
        timings,
        expert_rows: vec![3],
    };
    let message = output(GroupEpoch(3), StepId(7), result);
    let top = |token_id, logprob| proto::TokenLogprob { token_id, logprob };
    let expected = proto::StepOutput {
        epoch: 3,
        step: 7,
        samples: vec![proto::SampledToken {
            sequence_id: 9,
            position: 6,
            token_id: 42,
            logprob: -0.5,
            top_logprobs: vec![top(42, -0.5), top(1, -1.5)],
        }],
        deferred_sequence_ids: vec![5],
        failed: vec![proto::FailedSequence { sequence_id: 6, reason: "why".to_owned() }],
        timings: Some(proto::StepTimings {
            total: 1.0,
            attention: 2.0,
            dispatch: 3.0,
            experts: 4.0,
            combine: 5.0,
            head: 6.0,
            num_tokens: 7,
        }),
    };
    assert_eq!(message, expected);
}

proptest! {
    #[test]
    fn no_placement_makes_parsing_panic(
        slots_per_rank: u32,
        slots in proptest::collection::vec(-3..6_i32, 0..12),
        world_size in 0..5_u32,
    ) {
        let layer = proto::LayerPlacement { slots_per_rank, physical_to_logical: slots };
        let placement = Some(proto::Placement { layers: vec![layer] });
        let _ = plan(
            proto::LoadRequest { world_size, placement, ..load_request() },
            NUM_LAYERS,
            NUM_EXPERTS,
        );
    }
}
