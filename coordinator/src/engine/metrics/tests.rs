use switchyard_moe::capacity::BlockBytes;

use super::*;
use crate::metric_definitions;
use crate::scheduler::RankStats;

#[test]
fn what_sequences_hold_of_the_cache_is_told_by_family() {
    let recorder = metric_definitions::builder().unwrap().build_recorder();
    ::metrics::with_local_recorder(&recorder, || {
        let mut metrics = Metrics::new(&ModelId::new("m"));
        let block = BlockBytes { csa: 100, indexer: 10, hca: 1 };
        metrics.formed(2, KvBytes { block, window: 1000 });
        let rank = |free_blocks| RankStats { running: 1, free_blocks, total_blocks: 8 };
        metrics.stats(&Stats { running: 2, waiting: 5, ranks: vec![rank(8), rank(5)] });
    });
    let text = recorder.handle().render();
    for (family, bytes) in [("window", 2000), ("csa", 300), ("indexer", 30), ("hca", 3)] {
        let expect = format!(
            "switchyard_scheduler_kv_used_bytes{{model=\"m\",family=\"{family}\"}} {bytes}"
        );
        assert!(text.lines().any(|line| line == expect), "{expect} is not in\n{text}");
    }
}
