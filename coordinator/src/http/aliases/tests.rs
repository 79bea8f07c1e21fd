use metrics::{counter, gauge, histogram};

use super::*;

/// What a server with work on two ranks renders.
fn rendered() -> String {
    let recorder = names::builder().unwrap().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        gauge!(names::SCHEDULER_RUNNING_SEQUENCES, names::MODEL => "m/1").set(3.0);
        gauge!(names::SCHEDULER_WAITING_SEQUENCES, names::MODEL => "m/1").set(2.0);
        counter!(names::GENERATION_TOKENS_TOTAL, names::MODEL => "m/1").increment(77);
        for (rank, free) in [("0", 10.0), ("1", 20.0)] {
            let labels = [(names::MODEL, "m/1"), (names::RANK, rank)];
            gauge!(names::SCHEDULER_FREE_KV_BLOCKS, &labels).set(free);
            gauge!(names::SCHEDULER_KV_BLOCKS, &labels).set(20.0);
        }
        let labels = [(names::GEN_AI_OPERATION, "chat"), (names::GEN_AI_REQUEST_MODEL, "m/1")];
        histogram!(names::GEN_AI_TIME_TO_FIRST_TOKEN, &labels).record(0.3);
    });
    recorder.handle().run_upkeep();
    recorder.handle().render()
}

#[test]
fn gateways_find_the_names_they_know() {
    let text = Aliases::Vllm.append(rendered());
    let lines: Vec<_> = text.lines().collect();
    for expect in [
        "# TYPE vllm:num_requests_running gauge",
        "vllm:num_requests_running{model_name=\"m/1\"} 3",
        "vllm:num_requests_waiting{model_name=\"m/1\"} 2",
        "# TYPE vllm:generation_tokens_total counter",
        "vllm:generation_tokens_total{model_name=\"m/1\"} 77",
        "vllm:kv_cache_usage_perc{model_name=\"m/1\"} 0.25",
        "vllm:cache_config_info{model_name=\"m/1\",block_size=\"128\",num_gpu_blocks=\"40\"} 1",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        "vllm:time_to_first_token_seconds_bucket{gen_ai_operation_name=\"chat\",model_name=\"m/1\",le=\"0.5\"} 1",
        "vllm:time_to_first_token_seconds_count{gen_ai_operation_name=\"chat\",model_name=\"m/1\"} 1",
        // Ours stay as they are.
        "switchyard_scheduler_running_sequences{model=\"m/1\"} 3",
    ] {
        assert!(lines.contains(&expect), "{expect} is not in\n{text}");
    }
    let aliases = lines.iter().filter(|line| line.starts_with("vllm:"));
    assert!(aliases.clone().all(|line| !line.contains("rank=") && !line.contains("{model=")));
    let series: Vec<_> = aliases.filter_map(|line| line.rsplit_once(' ')).map(|it| it.0).collect();
    let mut distinct = series.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), series.len(), "a series twice");
}

#[test]
fn nothing_is_made_of_nothing() {
    let text = vllm("");
    assert!(!text.lines().any(|line| line.starts_with("vllm:")), "{text}");
}
