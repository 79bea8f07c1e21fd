//! Around every request: its id, its span, its counter, its line in the log.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use metrics::counter;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::Status;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use uuid::Uuid;

use crate::metric_definitions as names;

#[cfg(test)]
mod tests;

/// Header and gRPC metadata that carry the request id, both ways.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// Header with the time that the server took until its response began, in milliseconds.
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
/// Longest request id that is taken over from a client.
const REQUEST_ID_LEN_MAX: usize = 128;

/// The middleware. Prompt text and keys never reach the span or the log.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let id = request_id(request.headers());
    // For those who state it in a body.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| names::ROUTE_UNMATCHED.to_owned(), |path| path.as_str().to_owned());
    let span = request_span("http.request", request.headers());
    span.record("otel.name", format!("{method} {route}"));
    span.record("http.request.method", method.as_str());
    span.record("http.route", route.as_str());
    span.record("request.id", id.to_str().unwrap_or_default());

    let mut response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    let elapsed = arrived.elapsed();
    counter!(
        names::HTTP_REQUESTS_TOTAL,
        names::ROUTE => route,
        names::METHOD => known_method(&method),
        names::STATUS => status.as_u16().to_string(),
    )
    .increment(1);
    span.in_scope(|| {
        let elapsed_ms = elapsed.as_secs_f64() * 1e3;
        tracing::info!(status = status.as_u16(), elapsed_ms, "response begins");
    });
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if let Ok(ms) = u64::try_from(elapsed.as_millis()) {
        headers.insert(PROCESSING_MS, HeaderValue::from(ms));
    }
    response
}

/// A span for one request of either API, child of the caller's trace when there is one.
pub(crate) fn request_span(name: &'static str, headers: &HeaderMap) -> Span {
    // Of the highest level, so that lines of every level are told with it.
    let span = tracing::error_span!(
        "request",
        otel.name = name,
        otel.kind = "server",
        request.id = field::Empty,
        key.id = field::Empty,
        http.request.method = field::Empty,
        http.route = field::Empty,
        http.response.status_code = field::Empty,
        rpc.method = field::Empty,
        gen_ai.operation.name = field::Empty,
        gen_ai.provider.name = field::Empty,
        gen_ai.request.model = field::Empty,
        gen_ai.request.max_tokens = field::Empty,
        gen_ai.request.temperature = field::Empty,
        gen_ai.request.top_p = field::Empty,
        gen_ai.request.top_k = field::Empty,
        gen_ai.request.presence_penalty = field::Empty,
        gen_ai.request.frequency_penalty = field::Empty,
        gen_ai.request.choice.count = field::Empty,
        gen_ai.request.seed = field::Empty,
        gen_ai.request.stream = field::Empty,
        gen_ai.response.id = field::Empty,
        gen_ai.response.model = field::Empty,
        gen_ai.usage.input_tokens = field::Empty,
        gen_ai.usage.output_tokens = field::Empty,
    );
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract(&Headers(headers))
    });
    // Fails only when the span is disabled or no tracer is set up, and then there is nothing to link.
    let _ = span.set_parent(parent);
    span
}

/// The client's request id when it is fit to be logged and echoed, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fits = |id: &&HeaderValue| {
        (1..=REQUEST_ID_LEN_MAX).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(fits) {
        return id.clone();
    }
    let id = format!("req-{}", Uuid::new_v4().simple());
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("req-unknown"))
}

/// A method as a label: strangers can send any word as a method.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
