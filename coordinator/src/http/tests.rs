mod accounts;
mod admin;
mod batches;
mod chat;
mod dialects;
mod messages;
mod choices;
mod completions;
mod parameters;
mod refusals;
mod responses;
mod tokenize;

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::*;
use crate::engine::status::Phase;
use crate::testing::{self, Fixture, KEY, MODEL, merged};

/// A response, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status, `code` and `param` of an error in OpenAI's shape; checks the shape.
    fn error(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        let error = body["error"].as_object().expect("an error object");
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert!(error["type"].is_string());
        let param = error["param"].as_str().map(str::to_owned);
        assert!(param.is_some() || error["param"].is_null());
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned(), param)
    }
}

impl Fixture {
    /// Sends a request and returns once the response begins.
    async fn begin(&self, request: Request<Body>) -> Response {
        router(self.context.clone()).oneshot(request).await.unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.begin(request).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(path).header("authorization", format!("Bearer {KEY}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(post_to(path, body.to_string())).await
    }

    async fn chat(&self, fields: &Value) -> Answer {
        self.send(chat_request(fields)).await
    }
}

fn post(body: impl Into<Body>) -> Request<Body> {
    post_to("/v1/chat/completions", body)
}

fn post_to(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

/// A small chat request with these fields on top.
fn chat_request(fields: &Value) -> Request<Body> {
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "hi" }] });
    post(merged(body, fields).to_string())
}

#[tokio::test]
async fn models_are_listed_whether_ready_or_not() {
    let fixture = Fixture::new().await;
    fixture.engine.set(|status| status.phase = Phase::Forming);
    let answer = fixture.get("/v1/models").await.json();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["data"][0]["id"], MODEL);
    assert_eq!(answer["data"][0]["object"], "model");
    assert_eq!(answer["data"][0]["max_model_len"], 1024);
    assert!(answer["data"][0]["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(fixture.get("/v1/models/tiny").await.json(), answer["data"][0]);
    let unknown = fixture.get("/v1/models/org/other").await;
    assert_eq!(unknown.error(), (404, "model_not_found".into(), Some("model".into())));
}

#[tokio::test]
async fn ready_follows_the_groups_and_the_drain() {
    let fixture = Fixture::new().await;
    for (phase, status, text) in [
        (Phase::WaitingForWorkers { have: 1, want: Some(2) }, 503, "1 of 2 workers"),
        (Phase::Forming, 503, "connecting"),
        (Phase::Ready, 200, "ready"),
        (Phase::Recovering { reason: "rank 1 died".into() }, 200, "rank 1 died"),
        (Phase::Unavailable { reason: "no rank is left".into() }, 503, "no rank is left"),
    ] {
        fixture.engine.set(|group| group.phase = phase);
        let answer = fixture.get("/health/ready").await;
        assert_eq!(answer.status.as_u16(), status);
        let model = &answer.json()["models"][MODEL];
        assert_eq!(model["ready"], status == 200);
        assert!(model["phase"].as_str().unwrap().contains(text), "{model}");
    }
    fixture.engine.set(|group| group.phase = Phase::Ready);
    fixture.context.draining.cancel();
    let answer = fixture.get("/health/ready").await;
    assert_eq!((answer.status.as_u16(), answer.json()["status"].clone()), (503, "draining".into()));
    assert_eq!(fixture.get("/health/live").await.status, StatusCode::OK);
}

#[tokio::test]
async fn decode_health_fails_when_work_brings_no_token_for_too_long() {
    let limit = Duration::from_secs(5);
    let fixture =
        Fixture::with_limits(Limits { decode_stall_after: limit, ..Limits::default() }).await;
    let now = Instant::now();
    let long_ago = now.checked_sub(limit).unwrap();
    for (busy_since, last_token, status) in [
        (None, None, 200),
        (None, Some(long_ago), 200),
        (Some(now), Some(long_ago), 200),
        (Some(long_ago), Some(now), 200),
        (Some(long_ago), None, 503),
        (Some(long_ago), Some(long_ago), 503),
    ] {
        fixture.engine.set(|group| {
            group.busy_since = busy_since;
            group.last_token = last_token;
        });
        let answer = fixture.get("/health/decode").await;
        assert_eq!(answer.status.as_u16(), status, "{busy_since:?} {last_token:?}");
        assert_eq!(answer.json()["stalled_seconds"][MODEL].is_u64(), status == 503);
    }
}

#[tokio::test]
async fn health_and_metrics_need_no_key() {
    let fixture = Fixture::new().await;
    for path in ["/health/live", "/health/ready", "/health/decode", "/metrics"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(fixture.send(request).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn metrics_count_requests_and_tokens() {
    let fixture = Fixture::new().await;
    fixture.engine.answer(&testing::ids("one two"));
    assert_eq!(fixture.chat(&json!({})).await.status, StatusCode::OK);
    fixture.get("/strange/path").await;
    let metrics = fixture.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), METRICS_CONTENT_TYPE);
    let text = metrics.text();
    for line in [
        "# TYPE switchyard_http_requests_total counter",
        r#"switchyard_http_requests_total{route="/v1/chat/completions",method="POST",status="200"}"#,
        r#"switchyard_http_requests_total{route="unmatched",method="GET",status="404"}"#,
        "# HELP switchyard_requests_in_flight Chat requests that hold a permit.",
        r#"switchyard_generation_tokens_total{model="tiny"}"#,
        r#"gen_ai_operation_name="chat",gen_ai_provider_name="deepseek",gen_ai_request_model="tiny",le="0.01""#,
        "gen_ai_server_time_to_first_token_seconds_bucket{",
        "gen_ai_server_time_per_output_token_seconds_bucket{",
        r#"gen_ai_server_request_duration_seconds_bucket{"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("strange"), "a stranger's path became a label");
}

#[tokio::test]
async fn the_request_id_is_echoed_or_made() {
    let fixture = Fixture::new().await;
    let with_id = |id: &str| {
        let request = Request::get("/health/live").header("x-request-id", id);
        request.body(Body::empty()).unwrap()
    };
    assert_eq!(fixture.send(with_id("abc-1")).await.header("x-request-id"), "abc-1");
    for unfit in ["", "two words", &"x".repeat(129)] {
        let answer = fixture.send(with_id(unfit)).await;
        assert!(answer.header("x-request-id").starts_with("req-"), "{unfit}");
    }
    let refused = fixture.get("/nothing").await;
    assert!(refused.header("x-request-id").starts_with("req-"));
}

#[tokio::test]
async fn a_panic_is_a_500_in_the_same_shape() {
    let fixture = Fixture::new().await;
    // Nothing is scripted, so the engine panics.
    let answer = fixture.chat(&json!({})).await;
    assert_eq!(answer.error(), (500, "internal_error".into(), None));
}
