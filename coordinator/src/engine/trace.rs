//! A sequence in the trace of its request: waiting, prefill and decode as spans, and the steps that workers tell in them.
//!
//! Only sequences of sampled requests have these spans; for all others nothing is kept and nothing sent. What they cost
//! is bounded by constants, however long the answer is.

use std::borrow::Cow;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Status, TraceContextExt as _};
use switchyard_proto::worker::TraceContext;
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::scheduler::ChunkTokens;

#[cfg(test)]
mod tests;

/// Traces that workers are told of in one step; the protocol's limit.
pub(super) const TRACES_PER_STEP_MAX: usize = 4;
/// Steps of a sequence's prefill that workers tell. A prompt of a million tokens has thousands.
const PREFILL_STEPS_MAX: usize = 16;
/// Steps of a sequence's decode that workers tell: enough to see what one is made of.
const DECODE_STEPS_MAX: usize = 4;

/// A sequence in a sampled trace.
#[derive(Debug)]
pub(super) struct Trace {
    request: Span,
    phase: Span,
    is_decoding: bool,
    num_tokens: i64,
    prefill_steps_left: usize,
    decode_steps_left: usize,
}

// === impl Trace ===

impl Trace {
    /// The sequence of the request of this span waits. `None` unless the request is sampled.
    pub(super) fn begin(request: &Span) -> Option<Self> {
        request.context().span().span_context().is_sampled().then(|| Self {
            phase: info_span!(parent: request, "queue"),
            request: request.clone(),
            is_decoding: false,
            num_tokens: 0,
            prefill_steps_left: PREFILL_STEPS_MAX,
            decode_steps_left: DECODE_STEPS_MAX,
        })
    }

    /// The sequence runs.
    pub(super) fn started(&mut self, prompt_len: u32) {
        self.phase = info_span!(
            parent: &self.request,
            "prefill",
            gen_ai.usage.input_tokens = i64::from(prompt_len),
        );
    }

    /// One more token is there; the first one ends the prefill.
    pub(super) fn token(&mut self) {
        if !self.is_decoding {
            self.is_decoding = true;
            self.phase = info_span!(
                parent: &self.request,
                "decode",
                gen_ai.usage.output_tokens = field::Empty,
            );
        }
        self.num_tokens += 1;
    }

    /// The span that workers tell a step of this sequence in, if they are to.
    pub(super) fn step(&mut self, tokens: &ChunkTokens) -> Option<TraceContext> {
        let left = match tokens {
            ChunkTokens::Ids(_) => &mut self.prefill_steps_left,
            ChunkTokens::LastSample => &mut self.decode_steps_left,
        };
        *left = left.checked_sub(1)?;
        let context = self.phase.context();
        let span = context.span();
        let context = span.span_context();
        Some(TraceContext {
            trace_id: context.trace_id().to_bytes().to_vec(),
            span_id: context.span_id().to_bytes().to_vec(),
        })
    }

    /// Something happened that explains a gap.
    pub(super) fn note(&self, event: &'static str, attributes: Vec<KeyValue>) {
        self.phase.add_event(event, attributes);
    }

    /// The sequence cannot be completed.
    pub(super) fn failed(&self, reason: impl Into<Cow<'static, str>>) {
        self.phase.set_status(Status::error(reason));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.is_decoding {
            self.phase.record("gen_ai.usage.output_tokens", self.num_tokens);
        }
    }
}
