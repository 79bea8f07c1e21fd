use std::sync::Arc;

use switchyard_moe::ids::ModelId;

use super::super::CacheOptions;
use super::*;

fn options(change: impl Fn(&mut CacheOptions)) -> ModelGroupOptions {
    let text = include_str!("../../../../fixtures/micro/q/config.json");
    let config = Arc::new(ModelConfig::from_json(text).unwrap());
    let mut options = ModelGroupOptions::new(ModelId::new("m"), config);
    change(&mut options.cache);
    options
}

fn block_bytes() -> u64 {
    capacity::block_bytes(&options(|_| {}).config, CacheFormat::Bf16) as u64
}

#[test]
fn a_pool_is_no_larger_than_all_sequences_at_their_longest() {
    let options = options(|cache| {
        cache.kv_cache_bytes = 1 << 40;
        cache.max_num_seqs = 3;
        cache.max_model_len = Some(200);
    });
    let limits = resolve(&options, CPU);
    assert_eq!(limits.unwrap().num_blocks, 3 * 2);
}

#[test]
fn a_small_pool_lowers_the_longest_sequence() {
    let options = options(|cache| {
        cache.kv_cache_bytes = 2 * block_bytes();
        cache.max_model_len = Some(300);
    });
    let limits = resolve(&options, CPU);
    let limits = limits.unwrap();
    assert_eq!((limits.num_blocks, limits.max_model_len), (2, 256));
}

#[test]
fn the_models_own_limit_holds() {
    let options = options(|cache| {
        cache.max_model_len = Some(usize::MAX);
        cache.kv_cache_bytes = 1 << 40;
    });
    let limits = resolve(&options, CPU).unwrap();
    assert_eq!(limits.max_model_len, options.config.max_position_embeddings);
}

#[test]
fn exact_numerics_need_twice_the_bytes() {
    let mut options = options(|cache| cache.kv_cache_bytes = 8 * block_bytes());
    assert_eq!(resolve(&options, CPU).unwrap().num_blocks, 8);
    options.numerics = Numerics::Exact;
    assert_eq!(resolve(&options, CPU).unwrap().num_blocks, 4);
}

#[test]
fn a_gpu_keeps_more_blocks_in_the_same_bytes() {
    let mut options = options(|cache| cache.kv_cache_bytes = 8 * block_bytes());
    let fp8 = capacity::block_bytes(&options.config, CacheFormat::Fp8) as u64;
    let num_blocks = resolve(&options, CUDA).unwrap().num_blocks;
    assert_eq!(num_blocks as u64, 8 * block_bytes() / fp8);
    assert!(num_blocks > 8, "{num_blocks}");
    options.numerics = Numerics::Exact;
    assert_eq!(resolve(&options, CUDA), resolve(&options, CPU));
}

#[test]
fn impossible_options_are_refused() {
    assert_eq!(
        resolve(&options(|cache| cache.max_num_seqs = 0), CPU),
        Err(Error::Zero("max_num_seqs"))
    );
    assert_eq!(
        resolve(&options(|cache| cache.max_waiting = 0), CPU),
        Err(Error::Zero("max_waiting"))
    );
    assert_eq!(
        resolve(&options(|cache| cache.kv_cache_bytes = 1), CPU),
        Err(Error::NoBlock { kv_cache_bytes: 1, block_bytes: block_bytes() })
    );
}

#[test]
fn experts_need_as_many_ranks_as_hold_them() {
    let config = options(|_| {}).config;
    let all = fp4_expert_bytes(&config)
        * config.num_hidden_layers as u64
        * config.n_routed_experts as u64;
    assert_eq!(min_world_size(&config, 0), 1);
    assert_eq!(min_world_size(&config, all), 1);
    assert_eq!(min_world_size(&config, all - 1), 2);
    assert_eq!(min_world_size(&config, 1), config.n_routed_experts);
}
