use super::*;

/// A model with a layer of each kind, small in every direction.
pub(crate) fn tiny() -> ModelConfig {
    let text = include_str!("../../../../fixtures/micro/q/config.json");
    ModelConfig::from_json(text).unwrap()
}

fn options(device: Device, numerics: Numerics) -> Options {
    Options {
        device,
        numerics,
        num_threads: NonZeroUsize::MIN,
        config: tiny(),
        num_ranks: NonZeroUsize::new(2).unwrap(),
        batches: vec![1, 3],
        contexts: vec![10, 200],
        num_steps: NonZeroUsize::new(2).unwrap(),
        cache_bytes_max: None,
        copy_bytes: 1 << 16,
    }
}

fn measured(row: &Row) -> &Measured {
    match &row.outcome {
        Outcome::Measured(measured) => measured,
        Outcome::NoRoom { cache_bytes } => panic!("no room for {cache_bytes} bytes"),
    }
}

fn check(options: &Options) -> Report {
    let (mut num_rows, mut num_loading) = (0, 0);
    let report = run(options, &mut |event| match event {
        Event::Loading(_) => num_loading += 1,
        Event::Row(..) => num_rows += 1,
    })
    .unwrap();
    assert!(num_loading > 10 && num_rows == 4);
    assert!(report.copy_bandwidth > 0.0);
    let num_topk = options.config.num_experts_per_tok as f64;
    for row in &report.rows {
        let measured = measured(row);
        assert!(measured.seconds > 0.0 && measured.seconds_min <= measured.seconds);
        // A rank gets as many rows as it sends away.
        assert_eq!(measured.num_assignments, row.batch as f64 * num_topk);
        let slots = (options.config.n_routed_experts / options.num_ranks.get()) as f64;
        assert!(measured.num_hit >= 1.0 && measured.num_hit <= slots);
        let StepTimings { attention, dispatch, experts, combine, head, total, num_tokens } =
            measured.phases;
        let sum = attention + dispatch + experts + combine + head;
        assert!(sum > 0.0 && sum <= total, "{sum} of {total}");
        assert_eq!(num_tokens as usize, row.batch);
    }
    report
}

#[test]
fn a_step_runs_on_the_cpu() {
    let report = check(&options(Device::Cpu, Numerics::Official));
    let cases: Vec<_> = report.rows.iter().map(|row| (row.batch, row.context)).collect();
    assert_eq!(cases, [(1, 10), (3, 10), (1, 200), (3, 200)]);
    check(&options(Device::Cpu, Numerics::Exact));
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn a_step_runs_on_the_emulator() {
    for numerics in [Numerics::Exact, Numerics::Official] {
        let run = |device| {
            let small = Options {
                config: tiny().first_layers(2),
                batches: vec![2],
                contexts: vec![40],
                num_steps: NonZeroUsize::MIN,
                ..options(device, numerics)
            };
            let report = run(&small, &mut |_| {}).unwrap();
            measured(&report.rows[0]).clone()
        };
        let (emulated, cpu) = (run(Device::Emulated), run(Device::Cpu));
        assert_eq!(emulated.num_assignments, cpu.num_assignments);
        if numerics == Numerics::Exact {
            assert_eq!((emulated.num_hit, emulated.traffic), (cpu.num_hit, cpu.traffic));
        }
    }
}

#[test]
fn bytes_are_counted_by_what_is_read() {
    let config = ModelConfig {
        layers: vec![
            AttentionKind::SlidingWindow,
            AttentionKind::Csa { ratio: 4 },
            AttentionKind::Hca { ratio: 16 },
        ],
        num_hidden_layers: 3,
        num_hash_layers: 1,
        sliding_window: 16,
        index_topk: 8,
        ..tiny()
    };
    let options = Options { config: config.clone(), ..options(Device::Cpu, Numerics::Exact) };
    let source = Synthetic::new(config.clone());
    let census = Census { num_topk: 3, num_hit: vec![2, 1, 0], num_assignments: vec![6, 6, 6] };
    let at = |batch, context| traffic(&options, &source, (batch, context), &census);
    let (entry, key) = (4 * config.head_dim as u64, 4 * config.index_head_dim as u64);

    // The window is not full, and 11 tokens are two entries of four: no choice.
    let short = at(1, 10);
    assert_eq!((short.entries, short.index_keys), ((3 * 11 + 2) * entry, 0));
    let (hidden, inner) = (config.hidden_size as u64, config.moe_intermediate_size as u64);
    let expert = 3 * (hidden * inner / 2 + hidden * inner / 32);
    assert_eq!(short.experts, 3 * expert);

    // 200 tokens are 50 entries of four, of which 8 are chosen, and 12 of sixteen.
    let long = at(5, 199);
    assert_eq!(long.entries, 5 * (3 * 16 + 8 + 12) * entry);
    assert_eq!(long.index_keys, 5 * 50 * key);
    // The indexer's own weights are read only where it chooses, and a row of the embedding by each token.
    let indexer = (config.index_n_heads * config.index_head_dim * config.q_lora_rank) as u64;
    let indexer_scales = (config.index_n_heads * config.index_head_dim).div_ceil(128)
        * config.q_lora_rank.div_ceil(128);
    let projection = 2 * config.index_n_heads as u64 * hidden;
    assert_eq!(
        long.dense - short.dense,
        indexer + indexer_scales as u64 + projection + 4 * 2 * hidden
    );
    assert_eq!(long.total(), long.dense + long.experts + long.entries + long.index_keys);
}

#[test]
fn what_does_not_fit_is_left_out_and_the_rest_is_not() {
    let all = options(Device::Cpu, Numerics::Exact);
    let cells = CellBytes::of(&all);
    let needed = Room::default().with(&all, 3, 10).num_bytes(cells);
    let tight = Options { cache_bytes_max: Some(needed), ..all };
    let report = run(&tight, &mut |_| {}).unwrap();
    let ran: Vec<_> = report.rows.iter().map(|row| row.tokens_per_second().is_some()).collect();
    assert_eq!(ran, [true, true, true, false], "{:?}", report.rows);
}

#[test]
fn a_rank_without_experts_is_refused() {
    let num_ranks = NonZeroUsize::new(1000).unwrap();
    let error = run(&Options { num_ranks, ..options(Device::Cpu, Numerics::Exact) }, &mut |_| {});
    assert!(matches!(error, Err(Error::TooManyRanks { .. })));
}
