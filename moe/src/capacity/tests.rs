use super::*;

#[test]
fn entries_fall_into_the_block_of_their_first_token() {
    for ratio in [1, 3, 4, 16, 24, 100, 128, 200, 256] {
        for entry in 0..600 {
            let block = entry * ratio / BLOCK_SIZE;
            let first = first_entry_of_block(block, ratio);
            assert!(
                first <= entry && entry < first_entry_of_block(block + 1, ratio),
                "{ratio} {entry}"
            );
            assert!(entry - first < entries_per_block(ratio), "{ratio} {entry}");
        }
    }
}

#[test]
fn v4_flash_block_costs_what_the_entries_cost() {
    let text = include_str!("../config/v4-flash.json");
    let config = ModelConfig::from_json(text).unwrap();
    // 21 CSA layers of 32 entries and keys, 20 HCA layers of one entry, in bf16.
    let expected = (21 * 32 * (512 + 128) + 20 * 512) * 2;
    assert_eq!(block_bytes(&config, CacheFormat::Bf16), expected);
    let parts = BlockBytes { csa: 21 * 32 * 1024, indexer: 21 * 32 * 256, hca: 20 * 1024 };
    assert_eq!(BlockBytes::new(&config, CacheFormat::Bf16), parts);
    // The published 6,880 bytes per token (bf16 everything).
    assert_eq!(expected / BLOCK_SIZE, 6_880);
}

#[test]
fn fp8_blocks_cost_the_published_bytes_per_token() {
    let flash = ModelConfig::from_json(include_str!("../config/v4-flash.json")).unwrap();
    assert_eq!(CacheFormat::Fp8.row_bytes(flash.head_dim, flash.qk_rope_head_dim), 584);
    assert_eq!(CacheFormat::Fp8.key_bytes(flash.index_head_dim), 68);
    assert_eq!(block_bytes(&flash, CacheFormat::Fp8), 21 * 32 * (584 + 68) + 20 * 584);
    assert_eq!(block_bytes(&flash, CacheFormat::Fp8) / BLOCK_SIZE, 3_514);
    // The same widths, 30 CSA and 31 HCA layers.
    let csa = std::iter::repeat_n(AttentionKind::Csa { ratio: 4 }, 30);
    let hca = std::iter::repeat_n(AttentionKind::Hca { ratio: 128 }, 31);
    let pro = ModelConfig { layers: csa.chain(hca).collect(), ..flash };
    assert_eq!(block_bytes(&pro, CacheFormat::Fp8) / BLOCK_SIZE, 5_031);
    assert_eq!(block_bytes(&pro, CacheFormat::Bf16) / BLOCK_SIZE, 9_848);
}

#[test]
fn a_sequence_s_window_costs_its_rows() {
    let config = ModelConfig::from_json(include_str!("../config/v4-flash.json")).unwrap();
    let tails = sequence_bytes(&config, CacheFormat::Bf16)
        - config.num_hidden_layers * window_rows(&config) * 1_024;
    let windows = sequence_bytes(&config, CacheFormat::Fp8) - tails;
    assert_eq!(windows, config.num_hidden_layers * (128 + ROLLBACK_TOKENS) * 584);
}
