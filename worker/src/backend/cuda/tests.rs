use std::num::NonZeroUsize;
use std::path::Path;

use switchyard_kernels::cuda::{Gpu, Variant};
use switchyard_moe::capacity::{CacheFormat, block_bytes, sequence_bytes};
use switchyard_moe::config::{AttentionKind, ModelConfig};
use switchyard_moe::ids::EpRank;

use super::CudaBackend;
use crate::backend::Backend as _;
use crate::kv_cache::{CacheLimits, LayerLayout};

use crate::backend::Numerics;
use crate::backend::device::Device;
use crate::verify::tests::{golden, golden_ids, micro, tiny_b};
use crate::verify::{Options, compare, fingerprint, logits};
use crate::weights::Checkpoint;

/// The emulator, or with the feature `gpu-tests` alone the first GPU of this machine, whose ranks exchange through NCCL.
fn device() -> Device {
    #[cfg(feature = "cuda-emulator")]
    return Device::Emulated;
    #[cfg(not(feature = "cuda-emulator"))]
    {
        let dir = std::env::temp_dir().join("switchyard-kernels");
        "cuda".parse::<Device>().unwrap().with_kernel_cache(dir)
    }
}

fn options(numerics: Numerics, num_workers: usize) -> Options {
    Options {
        device: device(),
        numerics,
        num_workers: NonZeroUsize::new(num_workers).unwrap(),
        num_threads: NonZeroUsize::MIN,
        owner: EpRank(num_workers as u32 - 1),
        prefill_chunk: None,
        decode_from: None,
    }
}

/// Bits of the logits, and their largest difference from the golden ones.
fn run(model: &Path, file: &Path, key: &str, options: &Options) -> (String, f32) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let ids = golden_ids(file);
    let ours = logits(&checkpoint, &ids, options).unwrap();
    let vocab_size = checkpoint.config().vocab_size;
    let comparison = compare(&ours, &golden(file, key), vocab_size);
    (fingerprint(&ours), comparison.max_abs)
}

#[test]
fn exact_logits_are_the_reference_s_however_they_are_computed() {
    let file = micro().join("golden/short.safetensors");
    let whole = options(Numerics::Exact, 1);
    let (bits, max_abs) = run(&micro().join("q"), &file, "q.exact.prefill_logits", &whole);
    println!("micro short: {max_abs:e} {bits}");
    assert!(max_abs <= 2e-4, "{max_abs:e}");
    let decode = Options {
        prefill_chunk: NonZeroUsize::new(3),
        decode_from: Some(5),
        ..options(Numerics::Exact, 3)
    };
    let (other, _) = run(&micro().join("q"), &file, "q.exact.prefill_logits", &decode);
    assert_eq!(other, bits, "{decode:?}");
}

#[test]
fn longer_prompts_choose_among_entries() {
    let file = micro().join("golden/window.safetensors");
    let whole = options(Numerics::Exact, 1);
    let (bits, max_abs) = run(&micro().join("q"), &file, "q.exact.prefill_logits", &whole);
    println!("micro window: {max_abs:e} {bits}");
    assert!(max_abs <= 2e-4, "{max_abs:e}");
}

#[test]
#[ignore = "takes a minute on the emulator; .ci/run does it"]
fn bigger_models_agree_too() {
    let Some(dir) = tiny_b() else { return };
    let file = dir.join("golden/window.safetensors");
    for (model, key) in [("bf16", "hf.prefill_logits"), ("q", "q.exact.prefill_logits")] {
        let whole = options(Numerics::Exact, 2);
        let (bits, max_abs) = run(&dir.join(model), &file, key, &whole);
        println!("tiny-b {model} window: {max_abs:e} {bits}");
        assert!(max_abs <= 2e-4, "{max_abs:e}");
    }
}

#[test]
fn official_bits_do_not_depend_on_the_cut() {
    let file = micro().join("golden/window.safetensors");
    let model = micro().join("q");
    let of = |options: &Options| run(&model, &file, "q.exact.prefill_logits", options).0;
    let whole = of(&options(Numerics::Official, 1));
    let chunks = Options { prefill_chunk: NonZeroUsize::new(7), ..options(Numerics::Official, 2) };
    let decode = Options { decode_from: Some(30), ..options(Numerics::Official, 1) };
    assert_eq!(of(&chunks), whole);
    assert_eq!(of(&decode), whole);
}

/// Bytes of the caches of all layers, as they are on the device.
fn cache_bytes(config: &ModelConfig, variant: Variant, limits: &CacheLimits) -> usize {
    let gpu = Gpu::emulated(variant);
    let backend = CudaBackend::new(&gpu, config, true);
    let layer_bytes = |&kind: &AttentionKind| {
        backend.cache(&LayerLayout::new(config, kind, limits)).cache.num_bytes()
    };
    config.layers.iter().map(layer_bytes).sum()
}

#[test]
fn caches_take_the_bytes_that_the_coordinator_counts() {
    let limits = CacheLimits {
        num_blocks: 3,
        max_num_seqs: 2,
        max_num_batched_tokens: 8,
        max_model_len: 300,
    };
    let micro = Checkpoint::open(&micro().join("q")).unwrap().config().clone();
    let odd = ModelConfig {
        head_dim: 72,
        qk_rope_head_dim: 20,
        index_head_dim: 40,
        sliding_window: 5,
        layers: vec![
            AttentionKind::SlidingWindow,
            AttentionKind::Csa { ratio: 3 },
            AttentionKind::Hca { ratio: 100 },
        ],
        ..micro
    };
    let text = include_str!("../../../../moe/src/config/v4-flash.json");
    let flash = ModelConfig::from_json(text).unwrap();
    let first_layers = flash.layers[..4].to_vec();
    let flash = ModelConfig { layers: first_layers, ..flash };
    for config in [micro, odd, flash] {
        for (variant, format) in
            [(Variant::Exact, CacheFormat::F32), (Variant::Official, CacheFormat::Fp8)]
        {
            let counted = limits.num_blocks * block_bytes(&config, format)
                + limits.max_num_seqs * sequence_bytes(&config, format);
            assert_eq!(cache_bytes(&config, variant, &limits), counted, "{format:?} {config:?}");
        }
    }
}
