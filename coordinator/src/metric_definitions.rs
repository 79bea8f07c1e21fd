//! Names, labels, units and buckets of the coordinator's metrics. No other file spells a metric's name.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Label: id of a model.
pub const MODEL: &str = "model";
/// Gauge: 1, by [`VERSION`].
pub const BUILD_INFO: &str = "switchyard_build_info";
/// Label: version of the program.
pub const VERSION: &str = "version";
/// Gauge: 1 while this coordinator leads, 0 while it stands by.
pub const COORDINATOR_LEADS: &str = "switchyard_coordinator_leads";

// HTTP and gRPC.

/// Counter: HTTP requests by [`ROUTE`], [`METHOD`] and [`STATUS`], counted when the response begins.
pub const HTTP_REQUESTS_TOTAL: &str = "switchyard_http_requests_total";
/// Counter: gRPC calls of the client API by [`METHOD`] and [`STATUS`], counted when the response begins.
pub const GRPC_REQUESTS_TOTAL: &str = "switchyard_grpc_requests_total";
/// Gauge: chat requests that hold a permit, over both APIs.
pub const REQUESTS_IN_FLIGHT: &str = "switchyard_requests_in_flight";
/// Label: the route's pattern, or [`ROUTE_UNMATCHED`].
pub const ROUTE: &str = "route";
/// Value of [`ROUTE`] for paths that have none, so that strangers cannot make series.
pub const ROUTE_UNMATCHED: &str = "unmatched";
/// Label: HTTP method or gRPC method name.
pub const METHOD: &str = "method";
/// Label: HTTP status code, gRPC status name or status of a batch.
pub const STATUS: &str = "status";

// Connections.

/// Gauge: open connections, by [`API`].
pub const CONNECTIONS: &str = "switchyard_connections";
/// Counter: connections that were closed for their behaviour or for want of a place, by [`API`] and [`REASON`]: one of
/// the `CUT_` values.
pub const CONNECTIONS_CUT_TOTAL: &str = "switchyard_connections_cut_total";
/// Label: `http`, `grpc` or `admin`.
pub const API: &str = "api";
/// Value of [`REASON`]: as many connections as there may be, and all busy.
pub const CUT_FULL: &str = "full";
/// Value of [`REASON`]: it had nothing to do, and another connection came.
pub const CUT_EVICTED: &str = "evicted";
/// Value of [`REASON`]: the first request's header did not come in time.
pub const CUT_GREETING: &str = "greeting";
/// Value of [`REASON`]: a later request's header did not come in time.
pub const CUT_HEADER: &str = "header";
/// Value of [`REASON`]: the client did not take what waited for it.
pub const CUT_WRITE: &str = "write";

// Accounts.

/// Counter: requests refused because of a key's limit, by [`REASON`].
pub const RATE_LIMITED_REQUESTS_TOTAL: &str = "switchyard_rate_limited_requests_total";
/// Counter: requests without a good key, by [`API`] and [`REASON`]: `missing`, `unknown`, `expired` or `inactive`.
pub const AUTH_FAILURES_TOTAL: &str = "switchyard_auth_failures_total";
/// Histogram, seconds: a commit of usage to the ledger.
pub const LEDGER_COMMIT_DURATION: &str = "switchyard_ledger_commit_duration_seconds";
/// Counter: commits of usage that failed and were tried again.
pub const LEDGER_COMMIT_FAILURES_TOTAL: &str = "switchyard_ledger_commit_failures_total";
/// Label: why. For limits [`REASON_REQUESTS`], [`REASON_TOKENS`], [`REASON_CONCURRENT`] or [`REASON_QUOTA`].
pub const REASON: &str = "reason";
/// Value of [`REASON`]: requests per minute.
pub const REASON_REQUESTS: &str = "requests";
/// Value of [`REASON`]: tokens per minute.
pub const REASON_TOKENS: &str = "tokens";
/// Value of [`REASON`]: requests at once.
pub const REASON_CONCURRENT: &str = "concurrent";
/// Value of [`REASON`]: tokens per month.
pub const REASON_QUOTA: &str = "quota";

// Batches.

/// Gauge: batches by [`STATUS`], over all coordinators of a database.
pub const BATCHES: &str = "switchyard_batches";
/// Counter: requests of batches that have their result, by [`OUTCOME`].
pub const BATCH_LINES_TOTAL: &str = "switchyard_batch_lines_total";
/// Label: `completed` or `failed`.
pub const OUTCOME: &str = "outcome";

// Chat.

/// Counter: tokens of finished requests' prompts, by [`MODEL`].
pub const PROMPT_TOKENS_TOTAL: &str = "switchyard_prompt_tokens_total";
/// Counter: tokens generated and delivered, by [`MODEL`].
pub const GENERATION_TOKENS_TOTAL: &str = "switchyard_generation_tokens_total";
/// Histogram, seconds: `gen_ai.server.request.duration`. With [`ERROR_TYPE`] when it failed.
pub const GEN_AI_REQUEST_DURATION: &str = "gen_ai_server_request_duration_seconds";
/// Histogram, seconds: `gen_ai.server.time_to_first_token`.
pub const GEN_AI_TIME_TO_FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
/// Histogram, seconds: `gen_ai.server.time_per_output_token`, after the first token.
pub const GEN_AI_TIME_PER_OUTPUT_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";
/// Label: `gen_ai.operation.name`.
pub const GEN_AI_OPERATION: &str = "gen_ai_operation_name";
/// Value of [`GEN_AI_OPERATION`].
pub const GEN_AI_OPERATION_CHAT: &str = "chat";
/// Value of [`GEN_AI_OPERATION`].
pub const GEN_AI_OPERATION_TEXT_COMPLETION: &str = "text_completion";
/// Label: `gen_ai.provider.name`.
pub const GEN_AI_PROVIDER: &str = "gen_ai_provider_name";
/// Value of [`GEN_AI_PROVIDER`].
pub const GEN_AI_PROVIDER_DEEPSEEK: &str = "deepseek";
/// Label: `gen_ai.request.model`.
pub const GEN_AI_REQUEST_MODEL: &str = "gen_ai_request_model";
/// Label: `error.type`.
pub const ERROR_TYPE: &str = "error_type";
/// Value of [`ERROR_TYPE`] when the client went away.
pub const ERROR_CANCELLED: &str = "cancelled";

// Scheduler and engine, all by [`MODEL`].

/// Gauge: sequences that hold state on a rank.
pub const SCHEDULER_RUNNING_SEQUENCES: &str = "switchyard_scheduler_running_sequences";
/// Gauge: sequences that wait for a place.
pub const SCHEDULER_WAITING_SEQUENCES: &str = "switchyard_scheduler_waiting_sequences";
/// Gauge: KV blocks that no sequence holds, by [`RANK`].
pub const SCHEDULER_FREE_KV_BLOCKS: &str = "switchyard_scheduler_free_kv_blocks";
/// Gauge: KV blocks, by [`RANK`].
pub const SCHEDULER_KV_BLOCKS: &str = "switchyard_scheduler_kv_blocks";
/// Gauge, bytes: what sequences hold of the KV cache, over all ranks, by [`FAMILY`].
pub const SCHEDULER_KV_USED: &str = "switchyard_scheduler_kv_used_bytes";
/// Label: one of [`KV_FAMILIES`].
pub const FAMILY: &str = "family";
/// All values of [`FAMILY`]: sliding windows and what is not compressed yet, entries of CSA layers, their indexer keys, and
/// entries of HCA layers.
pub const KV_FAMILIES: [&str; 4] = ["window", "csa", "indexer", "hca"];
/// Counter: running sequences that gave up their blocks to be recomputed later.
pub const SCHEDULER_PREEMPTIONS_TOTAL: &str = "switchyard_scheduler_preemptions_total";
/// Counter: tokens computed, by [`KIND`].
pub const SCHEDULER_TOKENS_TOTAL: &str = "switchyard_scheduler_tokens_total";
/// Histogram, seconds: from a sequence's arrival until it first runs.
pub const SCHEDULER_QUEUE_DURATION: &str = "switchyard_scheduler_queue_duration_seconds";
/// Counter: steps over on all ranks.
pub const ENGINE_STEPS_TOTAL: &str = "switchyard_engine_steps_total";
/// Histogram, seconds: a step, from when it could begin until it is over on all ranks.
pub const ENGINE_STEP_DURATION: &str = "switchyard_engine_step_duration_seconds";
/// Histogram, seconds: the slowest rank's own account of a step.
pub const ENGINE_RANK_STEP_DURATION: &str = "switchyard_engine_rank_step_duration_seconds";
/// Counter: groups formed.
pub const CLUSTER_EPOCHS_TOTAL: &str = "switchyard_cluster_epochs_total";
/// Counter: groups lost, or given up for the next epoch, while they served.
pub const CLUSTER_RECOVERIES_TOTAL: &str = "switchyard_cluster_recoveries_total";
/// Counter: what ended an epoch or kept one from being formed, by [`FAULT`] and [`RANK`], the culprit's.
pub const CLUSTER_FAULTS_TOTAL: &str = "switchyard_cluster_faults_total";
/// Gauge: workers that hold a registration.
pub const CLUSTER_WORKERS: &str = "switchyard_cluster_workers";
/// Gauge: ranks of the newest group; 0 before the first.
pub const CLUSTER_WORLD_SIZE: &str = "switchyard_cluster_world_size";
/// Gauge: the newest epoch; 0 before the first.
pub const CLUSTER_EPOCH: &str = "switchyard_cluster_epoch";
/// Gauge: 1 for the group's present phase and 0 for all others, by [`PHASE`].
pub const CLUSTER_PHASE: &str = "switchyard_cluster_phase";
/// Gauge: share of its experts that a rank has loaded, 0 to 1, by [`RANK`].
pub const CLUSTER_LOAD_RATIO: &str = "switchyard_cluster_load_ratio";
/// Gauge, seconds: how long there has been work without a token; 0 without work.
pub const ENGINE_STALLED: &str = "switchyard_engine_stalled_seconds";
/// Label: one of [`Phase::NAMES`](crate::engine::status::Phase::NAMES).
pub const PHASE: &str = "phase";
/// Label: one of [`FAULTS`].
pub const FAULT: &str = "fault";
/// All values of [`FAULT`].
pub const FAULTS: [&str; 4] =
    [FAULT_WORKER_LOST, FAULT_WORKER_SILENT, FAULT_STEP_FAILED, FAULT_NOT_FORMED];
/// Value of [`FAULT`]: a worker's registration ended while its group served.
pub const FAULT_WORKER_LOST: &str = "worker_lost";
/// Value of [`FAULT`]: a worker was put out because it did not answer.
pub const FAULT_WORKER_SILENT: &str = "worker_silent";
/// Value of [`FAULT`]: a step failed or did not end in time.
pub const FAULT_STEP_FAILED: &str = "step_failed";
/// Value of [`FAULT`]: a worker did not load, connect or join.
pub const FAULT_NOT_FORMED: &str = "not_formed";
/// Label: a rank of the model's group.
pub const RANK: &str = "rank";
/// Value of [`RANK`] where the culprit is not known.
pub const RANK_UNKNOWN: &str = "unknown";
/// Label: [`KIND_PREFILL`] or [`KIND_DECODE`].
pub const KIND: &str = "kind";
/// Value of [`KIND`].
pub const KIND_PREFILL: &str = "prefill";
/// Value of [`KIND`].
pub const KIND_DECODE: &str = "decode";

/// Bounds of the durations of steps and commits, in seconds.
const STEP_DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0, 16.0];
/// Bounds of `gen_ai.server.request.duration`, in seconds.
const REQUEST_DURATION_BUCKETS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Bounds of `gen_ai.server.time_to_first_token`, in seconds, and beyond 10 s for prompts of a million tokens.
const TIME_TO_FIRST_TOKEN_BUCKETS: [f64; 20] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    30.0, 60.0, 120.0, 300.0,
];
/// Bounds of `gen_ai.server.time_per_output_token`, in seconds, and below 10 ms for small models.
const TIME_PER_OUTPUT_TOKEN_BUCKETS: [f64; 15] =
    [0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// A recorder with our buckets. The caller installs it, or keeps it to itself in tests.
///
/// # Errors
/// When a set of buckets is empty, which the constants above rule out.
pub fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full(GEN_AI_REQUEST_DURATION.to_owned()),
            &REQUEST_DURATION_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(GEN_AI_TIME_TO_FIRST_TOKEN.to_owned()),
            &TIME_TO_FIRST_TOKEN_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(GEN_AI_TIME_PER_OUTPUT_TOKEN.to_owned()),
            &TIME_PER_OUTPUT_TOKEN_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(SCHEDULER_QUEUE_DURATION.to_owned()),
            &TIME_TO_FIRST_TOKEN_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(ENGINE_STEP_DURATION.to_owned()),
            &STEP_DURATION_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(ENGINE_RANK_STEP_DURATION.to_owned()),
            &STEP_DURATION_BUCKETS,
        )?
        .set_buckets_for_metric(
            Matcher::Full(LEDGER_COMMIT_DURATION.to_owned()),
            &STEP_DURATION_BUCKETS,
        )
}

/// Installs the process's recorder and describes the metrics.
///
/// # Errors
/// When the process already has a recorder.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    describe();
    Ok(handle)
}

/// Tells the installed recorder what each metric means.
pub fn describe() {
    describe_front();
    describe_connections();
    switchyard_tls::metric_definitions::describe();
    describe_accounts();
    describe_batches();
    describe_engine();
    describe_cluster();
}

fn describe_accounts() {
    describe_counter!(RATE_LIMITED_REQUESTS_TOTAL, "Requests refused by a key's limit, by reason.");
    describe_counter!(AUTH_FAILURES_TOTAL, "Requests without a good key, by API and reason.");
    describe_histogram!(LEDGER_COMMIT_DURATION, Unit::Seconds, "Duration of a commit of usage.");
    describe_counter!(LEDGER_COMMIT_FAILURES_TOTAL, "Commits of usage that were tried again.");
    // An alert sees the first failure only if there was a 0 before it.
    counter!(LEDGER_COMMIT_FAILURES_TOTAL).increment(0);
}

fn describe_connections() {
    describe_gauge!(CONNECTIONS, "Open connections, by API.");
    describe_counter!(CONNECTIONS_CUT_TOTAL, "Connections that were cut, by API and reason.");
}

fn describe_batches() {
    describe_gauge!(BATCHES, "Batches, by status.");
    describe_counter!(BATCH_LINES_TOTAL, "Requests of batches with a result, by outcome.");
}

fn describe_engine() {
    describe_gauge!(SCHEDULER_RUNNING_SEQUENCES, "Sequences that hold state on a rank.");
    describe_gauge!(SCHEDULER_WAITING_SEQUENCES, "Sequences that wait for a place.");
    describe_gauge!(SCHEDULER_FREE_KV_BLOCKS, "KV blocks that no sequence holds, by rank.");
    describe_gauge!(SCHEDULER_KV_BLOCKS, "KV blocks, by rank.");
    describe_gauge!(
        SCHEDULER_KV_USED,
        Unit::Bytes,
        "What sequences hold of the KV cache, over all ranks, by family."
    );
    describe_counter!(SCHEDULER_PREEMPTIONS_TOTAL, "Sequences preempted, to be recomputed.");
    describe_counter!(SCHEDULER_TOKENS_TOTAL, "Tokens computed, by kind.");
    describe_histogram!(SCHEDULER_QUEUE_DURATION, Unit::Seconds, "Time until a sequence runs.");
    describe_counter!(ENGINE_STEPS_TOTAL, "Steps over on all ranks.");
    describe_histogram!(ENGINE_STEP_DURATION, Unit::Seconds, "Duration of a step.");
    describe_histogram!(
        ENGINE_RANK_STEP_DURATION,
        Unit::Seconds,
        "The slowest rank's own account of a step's duration."
    );
    describe_counter!(CLUSTER_EPOCHS_TOTAL, "Groups formed.");
    describe_counter!(CLUSTER_RECOVERIES_TOTAL, "Groups that ended while they served.");
}

fn describe_cluster() {
    describe_counter!(
        CLUSTER_FAULTS_TOTAL,
        "What ended an epoch or kept one from being formed, by fault and culprit."
    );
    describe_gauge!(CLUSTER_WORKERS, "Workers that hold a registration.");
    describe_gauge!(CLUSTER_WORLD_SIZE, "Ranks of the newest group.");
    describe_gauge!(CLUSTER_EPOCH, "The newest epoch.");
    describe_gauge!(CLUSTER_PHASE, "1 for the group's present phase.");
    describe_gauge!(CLUSTER_LOAD_RATIO, "Share of its experts that a rank has loaded.");
    describe_gauge!(ENGINE_STALLED, Unit::Seconds, "How long there has been work without a token.");
    describe_gauge!(BUILD_INFO, "1, with the version that runs.");
    describe_gauge!(COORDINATOR_LEADS, "1 while this coordinator leads.");
    gauge!(BUILD_INFO, VERSION => env!("CARGO_PKG_VERSION")).set(1.0);
}

fn describe_front() {
    describe_counter!(HTTP_REQUESTS_TOTAL, "HTTP requests by route, method and status.");
    describe_counter!(GRPC_REQUESTS_TOTAL, "gRPC calls of the client API by method and status.");
    describe_gauge!(REQUESTS_IN_FLIGHT, "Chat requests that hold a permit.");
    describe_counter!(PROMPT_TOKENS_TOTAL, "Tokens of finished requests' prompts.");
    describe_counter!(GENERATION_TOKENS_TOTAL, "Tokens generated and delivered.");
    describe_histogram!(GEN_AI_REQUEST_DURATION, Unit::Seconds, "Duration of a chat request.");
    describe_histogram!(
        GEN_AI_TIME_TO_FIRST_TOKEN,
        Unit::Seconds,
        "Time from a chat request's arrival to its first token."
    );
    describe_histogram!(
        GEN_AI_TIME_PER_OUTPUT_TOKEN,
        Unit::Seconds,
        "Mean time between tokens of an answer after the first."
    );
}
