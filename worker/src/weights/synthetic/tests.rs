use super::*;

#[test]
fn sizes_are_those_of_the_published_checkpoints() {
    let flash = Synthetic::tensors_of(&ModelConfig::v4_flash());
    let bytes = |wanted: &dyn Fn(&str) -> bool| -> usize {
        flash.iter().filter(|(name, _)| wanted(name)).map(|(_, t)| t.num_bytes()).sum()
    };
    assert_eq!(bytes(&|name| name.starts_with("layers.7.ffn.experts.0.")), 13_369_344);
    let replicated = bytes(&|name| layout::routed_expert(name).is_none());
    let ends = bytes(&|name| ["embed.weight", "head.weight"].contains(&name));
    assert_eq!(ends, 2 * 129_280 * 4096 * 2);
    let dense = (replicated - ends) as f64;
    assert!((6.6e9..6.8e9).contains(&dense), "{dense:e}");
    let pro = Synthetic::tensors_of(&ModelConfig::v4_pro());
    let expert = pro.iter().filter(|(name, _)| name.starts_with("layers.7.ffn.experts.0."));
    assert_eq!(expert.map(|(_, t)| t.num_bytes()).sum::<usize>(), 35_094_528);
}

#[test]
fn all_numbers_are_finite_and_small() {
    let bf16 = noise(1000, |[a, b]: [u8; 2]| [a, b]);
    assert_eq!(bf16.len(), 1000);
    let long = noise(3 * PERIOD_BYTES + 5, |code: [u8; 1]| code);
    assert_eq!(long.len(), 3 * PERIOD_BYTES + 5);
    assert_eq!(long[PERIOD_BYTES..2 * PERIOD_BYTES], long[..PERIOD_BYTES]);
    assert_eq!(long[3 * PERIOD_BYTES..], long[..5]);
    let source = Synthetic::new(crate::bench::step::tests::tiny());
    for (name, tensor) in &source.tensors {
        if tensor.format == Format::ExpertIds {
            let ids = source.expert_ids(name).unwrap();
            let num_topk = source.config.num_experts_per_tok;
            for row in ids.chunks(num_topk) {
                let distinct: std::collections::BTreeSet<_> = row.iter().collect();
                assert_eq!(distinct.len(), num_topk);
            }
            continue;
        }
        let floats = source.floats(name).unwrap();
        assert_eq!(floats.len(), tensor.len());
        assert!(floats.iter().all(|x| x.abs() <= 1.0), "{name}");
    }
}
