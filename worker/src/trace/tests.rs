use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::step::StepTimings;

/// The spans of a step with this result, told in these traces.
fn told(traces: &[Trace], computed: &Result<StepResult, model::Error>) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        Spans::begin(traces, (EpRank(2), GroupEpoch(5), StepId(9))).end(computed);
    });
    exporter.get_finished_spans().unwrap()
}

fn attribute(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
    found.unwrap_or_else(|| panic!("no {key} in {span:?}")).value.to_string()
}

#[test]
fn a_step_is_a_child_of_the_span_of_each_trace() {
    let traces = [1, 3].map(|byte| Trace::new(&[byte; 16], &[byte + 1; 8]).unwrap());
    let timings = StepTimings { attention: 0.25, num_tokens: 7, ..StepTimings::default() };
    let spans = told(&traces, &Ok(StepResult { timings, ..StepResult::default() }));
    assert_eq!(spans.len(), 2);
    for (span, byte) in spans.iter().zip([1, 3]) {
        assert_eq!(span.name, "step");
        assert_eq!(span.span_context.trace_id(), TraceId::from_bytes([byte; 16]));
        assert_eq!(span.parent_span_id, SpanId::from_bytes([byte + 1; 8]));
        for (key, value) in [
            ("switchyard.rank", "2"),
            ("switchyard.epoch", "5"),
            ("switchyard.step", "9"),
            ("switchyard.step.tokens", "7"),
            ("switchyard.step.attention_seconds", "0.25"),
        ] {
            assert_eq!(attribute(span, key), value);
        }
    }
    assert_eq!(told(&[], &Ok(StepResult::default())).len(), 0);
}

#[test]
fn a_failed_step_says_why() {
    let traces = [Trace::new(&[1; 16], &[2; 8]).unwrap()];
    let failed = Err(model::Error::Placement("no rank 7".to_owned()));
    let spans = told(&traces, &failed);
    assert_eq!(spans[0].status, Status::error("the placement does not fit: no rank 7"));
}

#[test]
fn ids_that_name_nothing_are_refused() {
    assert!(Trace::new(&[0; 16], &[1; 8]).is_none());
    assert!(Trace::new(&[1; 16], &[0; 8]).is_none());
    assert!(Trace::new(&[1; 15], &[1; 8]).is_none());
    assert!(Trace::new(&[1; 16], &[1; 9]).is_none());
}
