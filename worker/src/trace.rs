//! A step as spans in the traces of requests: what this rank did for each, and how long each phase took.
//!
//! Which steps are told, and in which traces, is the coordinator's choice. A step that is told in none costs nothing here.

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::model;
use crate::step::StepResult;

#[cfg(test)]
mod tests;

/// Traces that a step is told in at most.
pub const TRACES_MAX: usize = 4;

/// A span of a sampled trace that a step's span becomes a child of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace(SpanContext);

/// The spans of a step under way, one for each trace.
#[derive(Debug)]
pub(crate) struct Spans(Vec<Span>);

// === impl Trace ===

impl Trace {
    /// The span with these ids; `None` when they have another length or are all 0, which names nothing.
    #[must_use]
    pub fn new(trace_id: &[u8], span_id: &[u8]) -> Option<Self> {
        let trace_id = TraceId::from_bytes(trace_id.try_into().ok()?);
        let span_id = SpanId::from_bytes(span_id.try_into().ok()?);
        let context =
            SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::default());
        context.is_valid().then_some(Self(context))
    }
}

// === impl Spans ===

impl Spans {
    /// The step begins.
    pub(crate) fn begin(
        traces: &[Trace],
        (rank, epoch, step): (EpRank, GroupEpoch, StepId),
    ) -> Self {
        // Signed numbers, because OpenTelemetry has no others: these would become text.
        let span = |Trace(parent): &Trace| {
            let span = info_span!(
                parent: None,
                "step",
                switchyard.rank = i64::from(rank.0),
                switchyard.epoch = epoch.0 as i64,
                switchyard.step = step.0 as i64,
                switchyard.step.tokens = field::Empty,
                switchyard.step.samples = field::Empty,
                switchyard.step.attention_seconds = field::Empty,
                switchyard.step.dispatch_seconds = field::Empty,
                switchyard.step.experts_seconds = field::Empty,
                switchyard.step.combine_seconds = field::Empty,
                switchyard.step.head_seconds = field::Empty,
            );
            // Fails only without a tracer, and then there is nothing to tell.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
            span
        };
        Self(traces.iter().map(span).collect())
    }

    /// The step is over.
    pub(crate) fn end(self, computed: &Result<StepResult, model::Error>) {
        for span in self.0 {
            match computed {
                Ok(result) => {
                    let timings = &result.timings;
                    span.record("switchyard.step.tokens", i64::from(timings.num_tokens));
                    span.record("switchyard.step.samples", result.samples.len() as i64);
                    span.record("switchyard.step.attention_seconds", timings.attention);
                    span.record("switchyard.step.dispatch_seconds", timings.dispatch);
                    span.record("switchyard.step.experts_seconds", timings.experts);
                    span.record("switchyard.step.combine_seconds", timings.combine);
                    span.record("switchyard.step.head_seconds", timings.head);
                }
                Err(error) => span.set_status(Status::error(crate::chain(error))),
            }
        }
    }
}
