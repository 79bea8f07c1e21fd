use serde_json::json;
use switchyard_moe::ids::{EpRank, GroupEpoch, WorkerId};
use tokio::time::Duration;

use super::*;
use crate::engine::status::RankBlocks;

fn member(worker: u64) -> RankMember {
    RankMember {
        worker: WorkerId(worker),
        address: format!("10.0.0.{worker}:7000"),
        pid: 100 + worker as u32,
        device: "cpu, 2 threads".to_owned(),
        loaded: 1.0,
        is_lost: false,
    }
}

/// A group of two ranks, one of which has work.
fn serving() -> GroupStatus {
    let rank = |sequences, free| RankBlocks { sequences, free, total: 64 };
    GroupStatus {
        phase: Phase::Ready,
        epoch: GroupEpoch(3),
        world_size: 2,
        running: 1,
        ranks: vec![rank(1, 60), rank(0, 64)],
        members: vec![member(1), member(2)],
        ..GroupStatus::new(4096)
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_is_told_as_it_is() {
    let began = Instant::now();
    let mut status = serving();
    status.busy_since = Some(began);
    let now = began + Duration::from_secs(2);
    let expect = json!({
        "id": "m", "ready": true, "phase": "ready", "detail": "ready", "epoch": 3, "max_model_len": 4096,
        "running": 1, "waiting": 0, "stalled_seconds": 2.0, "answers_per_second": 0.0,
        "generated_tokens_per_second": 0.0, "prompt_tokens_per_second": 0.0, "step_seconds": null,
        "kv_blocks_used": 4, "kv_blocks": 128,
        "ranks": [
            {
                "rank": 0, "state": "ready", "loaded": 1.0, "worker": 1, "address": "10.0.0.1:7000", "pid": 101,
                "device": "cpu, 2 threads", "sequences": 1, "kv_blocks_used": 4, "kv_blocks": 64,
                "tokens_per_second": 0.0, "step_seconds": null,
            },
            {
                "rank": 1, "state": "ready", "loaded": 1.0, "worker": 2, "address": "10.0.0.2:7000", "pid": 102,
                "device": "cpu, 2 threads", "sequences": 0, "kv_blocks_used": 0, "kv_blocks": 64,
                "tokens_per_second": 0.0, "step_seconds": null,
            },
        ],
        "faults": [],
    });
    let told = ModelStatus::new("m", &status, now);
    assert_eq!(serde_json::to_value(&told).unwrap(), expect);
    assert_eq!(serde_json::from_value::<ModelStatus>(expect).unwrap(), told);
}

#[tokio::test(start_paused = true)]
async fn the_culprit_is_lost_until_the_next_group_begins() {
    let began = Instant::now();
    let mut status = serving();
    for _ in 0..9 {
        status.add_fault(Fault {
            at: began,
            kind: "worker_lost",
            ranks: vec![EpRank(1), EpRank(7)],
            epoch: GroupEpoch(3),
            message: "rank 1 left".to_owned(),
        });
    }
    status.phase = Phase::Recovering { reason: "rank 1 left".to_owned() };
    let told = ModelStatus::new("m", &status, began + Duration::from_secs(5));
    let states: Vec<_> = told.ranks.iter().map(|rank| rank.state.as_str()).collect();
    assert_eq!(states, ["waiting", "lost"]);
    assert!(told.ready, "requests are queued meanwhile");
    assert_eq!(told.detail, "recovering: rank 1 left");
    assert_eq!(told.faults.len(), 8, "the oldest is forgotten");
    let expect = FaultStatus {
        seconds_ago: 5.0,
        fault: "worker_lost".to_owned(),
        ranks: vec![1, 7],
        epoch: 3,
        message: "rank 1 left".to_owned(),
    };
    assert_eq!(told.faults[7], expect);
    status.members = vec![member(1), RankMember { loaded: 0.25, ..member(3) }];
    let told = ModelStatus::new("m", &status, began);
    let states: Vec<_> = told.ranks.iter().map(|rank| rank.state.as_str()).collect();
    assert_eq!(states, ["waiting", "loading"]);
}
