use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, SpanData};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

/// The spans that are told while `told` runs, when requests are sampled so.
fn spans(sampler: Sampler, told: impl FnOnce()) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .with_sampler(sampler)
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), told);
    exporter.get_finished_spans().unwrap()
}

fn ids() -> ChunkTokens {
    ChunkTokens::Ids(vec![1])
}

#[test]
fn a_sequence_waits_prefills_and_decodes_in_the_trace_of_its_request() {
    let spans = spans(Sampler::AlwaysOn, || {
        let request = info_span!("request");
        let mut trace = Trace::begin(&request).unwrap();
        trace.started(5);
        trace.token();
        trace.token();
    });
    let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["queue", "prefill", "decode", "request"]);
    let request = &spans[3];
    for span in &spans[..3] {
        assert_eq!(span.parent_span_id, request.span_context.span_id());
        assert_eq!(span.span_context.trace_id(), request.span_context.trace_id());
    }
    assert!(spans.windows(2).all(|pair| pair[0].end_time <= pair[1].end_time));
    let tokens = KeyValue::new("gen_ai.usage.output_tokens", 2_i64);
    assert!(spans[2].attributes.contains(&tokens), "{:?}", spans[2].attributes);
}

#[test]
fn workers_tell_a_bounded_number_of_steps_in_the_phase_they_belong_to() {
    let mut told = Vec::new();
    let spans = spans(Sampler::AlwaysOn, || {
        let request = info_span!("request");
        let mut trace = Trace::begin(&request).unwrap();
        trace.started(5);
        told.extend((0..100).filter_map(|_| trace.step(&ids())));
        trace.token();
        told.extend((0..100).filter_map(|_| trace.step(&ChunkTokens::LastSample)));
    });
    assert_eq!(told.len(), PREFILL_STEPS_MAX + DECODE_STEPS_MAX);
    let of =
        |context: &TraceContext| SpanId::from_bytes(context.span_id.as_slice().try_into().unwrap());
    assert_eq!(of(&told[0]), spans[1].span_context.span_id());
    assert_eq!(of(&told[PREFILL_STEPS_MAX]), spans[2].span_context.span_id());
    assert_eq!(told[0].trace_id, spans[1].span_context.trace_id().to_bytes());
}

#[test]
fn a_request_that_is_not_sampled_costs_nothing() {
    let spans = spans(Sampler::AlwaysOff, || {
        assert!(Trace::begin(&info_span!("request")).is_none());
    });
    assert_eq!(spans.len(), 0);
    // Nor does one without any tracer.
    assert!(Trace::begin(&info_span!("request")).is_none());
}
