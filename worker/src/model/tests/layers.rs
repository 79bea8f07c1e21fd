//! Official numerics against the reference, one layer at a time on the reference's own input: over all layers at
//! once, rounding makes tiny random models chaotic.

use super::*;

/// How far two rows of one layer may be apart.
#[derive(Debug)]
struct Distance {
    rms: f64,
    max: f32,
}

fn distance(ours: &[f32], golden: &[f32]) -> Distance {
    assert_eq!(ours.len(), golden.len());
    let differences = ours.iter().zip(golden).map(|(a, b)| (a - b).abs());
    let squares: f64 = differences.clone().map(|d| f64::from(d) * f64::from(d)).sum();
    Distance { rms: (squares / ours.len() as f64).sqrt(), max: differences.fold(0.0, f32::max) }
}

/// Outputs of attention and experts, and the streams, of every layer, each computed from the golden streams before it.
fn forced_layers(numerics: Numerics, file: &std::path::Path, prefix: &str) -> Vec<[Vec<f32>; 3]> {
    let mut model = load(numerics, 0, 1);
    let ids = golden_ids(file);
    let mut local = mesh(1).remove(0);
    let batch = batch(vec![prefill(0, 0, &ids, None)]);
    model.sequences.admit(&batch, model.config.vocab_size).unwrap();
    let spans = spans(&model.sequences, &batch);
    let width = model.config.hc_mult * model.config.hidden_size;
    let mut pass = Pass {
        backend: &mut model.backend,
        config: &model.config,
        work: &mut model.work,
        ids: &ids,
        spans: &spans,
        timings: StepTimings::default(),
    };
    pass.begin(&model.weights.embed, 1);
    let mut layers = Vec::new();
    for (index, layer) in model.layers.iter_mut().enumerate() {
        if index > 0 {
            let streams = golden(file, &format!("{prefix}.L{}.hidden", index - 1));
            pass.work.streams = pass.backend.upload(streams, width);
        }
        let download = |pass: &Pass<'_, CpuBackend>,
                        tensor: fn(&Workspace<CpuBackend>) -> &CpuTensor| {
            pass.backend.download(tensor(pass.work))
        };
        pass.attention_block(&layer.weights, &mut layer.cache, model.config.layers[index]);
        let attention = download(&pass, |work| &work.y);
        pass.moe_block(StepId(1), index, layer, &mut local).unwrap();
        layers.push([attention, download(&pass, |w| &w.y), download(&pass, |w| &w.streams)]);
    }
    layers
}

/// Expects every layer's tensors within `rms` of the golden ones, whose own rms is about 1.
fn check(numerics: Numerics, prefix: &str, rms: f64) {
    let file = micro().join("golden/short.safetensors");
    for (index, ours) in forced_layers(numerics, &file, prefix).iter().enumerate() {
        for (ours, name) in ours.iter().zip(["attn_out", "ffn_out", "hidden"]) {
            let distance = distance(ours, &golden(&file, &format!("{prefix}.L{index}.{name}")));
            println!("{prefix}.L{index}.{name}: {distance:?}");
            assert!(distance.rms <= rms, "{prefix}.L{index}.{name}: {distance:?}");
        }
    }
}

#[test]
fn official_layers_are_the_reference_s() {
    check(Numerics::Official, "q.official", 2e-4);
}

#[test]
fn official_layers_are_not_the_exact_ones() {
    // The tolerance above means something: exact layers are far outside of it.
    let file = micro().join("golden/short.safetensors");
    let exact = &forced_layers(Numerics::Exact, &file, "q.official")[1][2];
    let golden = golden(&file, "q.official.L1.hidden");
    assert!(distance(exact, &golden).rms > 8e-3, "{:?}", distance(exact, &golden));
}
