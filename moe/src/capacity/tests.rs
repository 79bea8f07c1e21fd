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
    // The published 6,880 bytes per token (bf16 everything).
    assert_eq!(expected / BLOCK_SIZE, 6_880);
}
