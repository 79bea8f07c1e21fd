use axum::body::Body;
use axum::http::Request as HttpRequest;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::json;
use tower::ServiceExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::testing::log::Log;
use crate::testing::{self, Fixture, KEY, MODEL};

#[test]
fn a_request_joins_the_trace_of_its_caller() {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let tracer = SdkTracerProvider::builder().build().tracer("test");
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let trace_of = |traceparent: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(traceparent) = traceparent {
            headers.insert("traceparent", HeaderValue::from_static(traceparent));
        }
        let context = request_span("http.request", &headers).context();
        context.span().span_context().trace_id().to_string()
    };
    let caller = "0af7651916cd43dd8448eb211c80319c";
    let joined = trace_of(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert_eq!(joined, caller);
    for traceparent in [None, Some("00-nonsense-01")] {
        let own = trace_of(traceparent);
        assert_ne!(own, caller);
        assert_ne!(own, "0".repeat(32));
    }
}

/// A request that is answered, and one that is refused.
async fn talk(fixture: &Fixture) {
    fixture.engine.answer(&testing::ids("whispered"));
    let good = json!([{ "role": "user", "content": "confidential" }]);
    for messages in [good, json!("confidential")] {
        let body = json!({ "model": MODEL, "temperature": 0.5, "n": 1, "messages": messages });
        let request = HttpRequest::post("/v1/chat/completions")
            .header("authorization", format!("Bearer {KEY}"))
            .header("x-request-id", "my-request")
            .body(Body::from(body.to_string()))
            .unwrap();
        let router = crate::http::router(fixture.context.clone());
        let response = router.oneshot(request).await.unwrap();
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    }
}

#[tokio::test]
async fn logs_say_what_happened_but_never_what_was_said() {
    let fixture = Fixture::new().await;
    let log = Log::default();
    let _recording = log.record();
    talk(&fixture).await;
    let log = log.text();
    for said in ["confidential", "whispered", KEY] {
        assert!(!log.contains(said), "{said} is in the log:\n{log}");
    }
    for noted in [
        "request.id=\"my-request\"",
        "gen_ai.request.model=\"tiny\"",
        "gen_ai.request.temperature=0.5",
        "gen_ai.request.choice.count=1",
        "gen_ai.usage.input_tokens=16",
        "gen_ai.usage.output_tokens=9",
        "http.route=\"/v1/chat/completions\"",
        "authenticate",
        "prepare",
        "admission",
        "status=200",
        "status=400",
    ] {
        assert!(log.contains(noted), "{noted} is not in the log:\n{log}");
    }
}

#[test]
fn a_quiet_log_has_the_request_id_too() {
    let log = Log::default();
    let _recording = log.record_from(tracing::Level::WARN);
    let span = request_span("http.request", &HeaderMap::new());
    span.record("request.id", "my-request");
    span.in_scope(|| tracing::warn!("something happened"));
    let text = log.text();
    assert!(text.contains("request.id=\"my-request\"") && text.contains("something"), "{text}");
}
