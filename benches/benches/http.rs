//! What the coordinator's API costs beside the model: a request from the bytes of its body to the bytes of its answer,
//! behind an engine that has the tokens at once. So it covers key, limits, prompt, output parser, JSON, and the ledger's
//! durable commit, which the answer waits for.
//!
//! `cargo bench -p switchyard-benches --bench http [-- FILTER]`
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::future::BoxFuture;
use serde_json::{Value, json};
use switchyard_coordinator::auth::{Accounts, KeyStore};
use switchyard_coordinator::batches::Batches;
use switchyard_coordinator::chat::compat::Compat;
use switchyard_coordinator::chat::model::Model;
use switchyard_coordinator::chat::{Chat, Generate, Served};
use switchyard_coordinator::election::{ElectionOptions, Standing};
use switchyard_coordinator::engine::request::{
    FinishReason, GenerateEvent, GenerateRequest, GeneratedToken, Generation, SubmitError,
};
use switchyard_coordinator::engine::status::{GroupStatus, Phase};
use switchyard_coordinator::http::models::Catalog;
use switchyard_coordinator::http::{Context, router};
use switchyard_coordinator::metric_definitions;
use switchyard_coordinator::options::{
    BatchLimits, ConnectionLimits, FileLimits, Limits, ModelOptions, Options, Tls,
    default_database_url,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const KEY: &str = "sk-sy-bench";
const MODEL: &str = "demo-flash";

/// Answers each sequence at once with as many tokens as it may have.
#[derive(Debug)]
struct Instant(watch::Sender<GroupStatus>);

impl Generate for Instant {
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        let (events, receiver) = mpsc::channel(request.max_tokens as usize + 1);
        for token_id in (300..900).cycle().take(request.max_tokens as usize) {
            let token = GeneratedToken { token_id, logprob: None, top_logprobs: Vec::new() };
            events.try_send(GenerateEvent::Token(token)).unwrap();
        }
        events.try_send(GenerateEvent::Finished(FinishReason::Length)).unwrap();
        Box::pin(async move { Ok(Generation::new(receiver)) })
    }

    fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.0.subscribe()
    }
}

fn options(data_dir: &std::path::Path) -> Options {
    let any_port = ([127, 0, 0, 1], 0).into();
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo-flash");
    Options {
        http: any_port,
        grpc: any_port,
        tls: Tls::default(),
        connections: ConnectionLimits::default(),
        data_dir: data_dir.to_owned(),
        database_url: None,
        models: vec![ModelOptions::new(MODEL, dir)],
        bootstrap_key: None,
        admin: None,
        compat: Compat::default(),
        limits: Limits::default(),
        file_store: None,
        files: FileLimits::default(),
        batches: BatchLimits::default(),
        playground: false,
        election: ElectionOptions::None,
        metrics: metric_definitions::install().unwrap(),
        metrics_aliases: None,
    }
}

async fn service(options: Options) -> Router {
    let model = Model::load(&options.models[0]).unwrap();
    let status = GroupStatus { phase: Phase::Ready, ..GroupStatus::new(4096) };
    let served = Served { model, engine: Arc::new(Instant(watch::Sender::new(status))) };
    let keys = KeyStore::open(&default_database_url(&options.data_dir)).await.unwrap();
    keys.insert_plaintext("bench", KEY).await.unwrap();
    let batches = Batches::open(&options, &keys).unwrap();
    let (accounts, ledger) = Accounts::new(keys);
    tokio::spawn(ledger.run(CancellationToken::new()));
    router(Context {
        chat: Arc::new(Chat::new(vec![served], options.limits.in_flight_requests_max)),
        accounts,
        admin: None,
        responses: Arc::default(),
        batches,
        limits: Arc::new(options.limits),
        catalog: Arc::new(Catalog::new(&options.models)),
        playground: options.playground,
        metrics: options.metrics,
        metrics_aliases: None,
        standing: watch::channel(Standing::Leads).1,
        draining: CancellationToken::new(),
    })
}

/// Sends a request and reads its answer to the end.
async fn send(service: &Router, body: &Value) {
    let request = Request::post("/v1/chat/completions")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let answer = service.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
}

fn body(question: &str, max_tokens: u32, stream: bool) -> Value {
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": question }], "max_tokens": max_tokens,
        "ignore_eos": true, "stream": stream, "thinking": { "type": "disabled" },
    })
}

fn http(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let data_dir = tempfile::tempdir().unwrap();
    let service = &runtime.block_on(service(options(data_dir.path())));

    // One token, so that hardly anything but the request itself is left: a short prompt, and one of 900 words.
    let long = "What is the capital of France? ".repeat(150);
    for (name, question) in [("short", "What are you?"), ("long", &long)] {
        let body = body(question, 1, false);
        c.bench_with_input(BenchmarkId::new("request", name), &body, |b, body| {
            b.to_async(&runtime).iter(|| send(service, body));
        });
    }
    // Thirty-two at once share the ledger's commits.
    let mut group = c.benchmark_group("concurrent");
    group.throughput(Throughput::Elements(32));
    let one = body("What are you?", 1, false);
    group.bench_function("32", |b| {
        b.to_async(&runtime)
            .iter(|| futures::future::join_all((0..32).map(|_| send(service, &one))));
    });
    group.finish();

    let mut group = c.benchmark_group("tokens");
    for (name, stream) in [("whole", false), ("stream", true)] {
        group.throughput(Throughput::Elements(1024));
        let body = body("What are you?", 1024, stream);
        group.bench_with_input(name, &body, |b, body| {
            b.to_async(&runtime).iter(|| send(service, body));
        });
    }
    group.finish();
}

criterion_group!(benches, http);
criterion_main!(benches);
