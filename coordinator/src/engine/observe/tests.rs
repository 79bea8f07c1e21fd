use metrics_exporter_prometheus::PrometheusBuilder;
use switchyard_moe::ids::GroupEpoch;
use tokio::time::Duration;

use super::*;

fn rendered(status: &GroupStatus, now: Instant) -> Vec<String> {
    let recorder = PrometheusBuilder::new().build_recorder();
    ::metrics::with_local_recorder(&recorder, || record("m", status, now));
    let text = recorder.handle().render();
    text.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn the_gauges_say_where_the_group_stands() {
    let began = Instant::now();
    let status = GroupStatus {
        phase: Phase::Loading { ranks: vec![0.5, 0.25] },
        epoch: GroupEpoch(3),
        world_size: 2,
        busy_since: Some(began),
        ..GroupStatus::new(100)
    };
    let lines = rendered(&status, began + Duration::from_secs(7));
    for expect in [
        r#"switchyard_cluster_phase{model="m",phase="loading"} 1"#,
        r#"switchyard_cluster_phase{model="m",phase="ready"} 0"#,
        r#"switchyard_cluster_epoch{model="m"} 3"#,
        r#"switchyard_cluster_world_size{model="m"} 2"#,
        r#"switchyard_cluster_load_ratio{model="m",rank="1"} 0.25"#,
        r#"switchyard_engine_stalled_seconds{model="m"} 7"#,
    ] {
        assert!(lines.iter().any(|line| line == expect), "{expect} is not in {lines:#?}");
    }
    let ready = GroupStatus { phase: Phase::Ready, busy_since: None, ..status };
    let lines = rendered(&ready, began);
    let present: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("switchyard_cluster_phase") && line.ends_with(" 1"))
        .collect();
    assert_eq!(present, [r#"switchyard_cluster_phase{model="m",phase="ready"} 1"#]);
    assert!(lines.contains(&r#"switchyard_cluster_load_ratio{model="m",rank="1"} 1"#.to_owned()));
}

#[test]
fn every_phase_has_a_name_of_its_own() {
    let phases = [
        Phase::WaitingForWorkers { have: 0, want: None },
        Phase::Loading { ranks: Vec::new() },
        Phase::Forming,
        Phase::Ready,
        Phase::Recovering { reason: String::new() },
        Phase::Unavailable { reason: String::new() },
        Phase::Stopping,
    ];
    assert_eq!(phases.map(|phase| phase.name()), Phase::NAMES);
}
