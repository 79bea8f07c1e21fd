//! An engine that computes nothing: it checks what reaches it, and answers with a script.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use switchyard_coordinator::chat::Generate;
use switchyard_coordinator::engine::request::{
    GenerateEvent, GenerateRequest, Generation, SamplingParams, SubmitError,
};
use switchyard_coordinator::engine::status::{GroupStatus, Phase};
use tokio::sync::{mpsc, watch};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Engine {
    status: watch::Sender<GroupStatus>,
    vocab_size: usize,
    /// What each sequence is answered with; without it each is refused.
    script: Mutex<Option<Vec<GenerateEvent>>>,
}

impl Engine {
    /// Serves a model with a vocabulary of `vocab_size`, up to `context_length` tokens.
    pub(crate) fn new(vocab_size: usize, context_length: u32) -> Arc<Self> {
        let mut status = GroupStatus::new(context_length as usize);
        status.phase = Phase::Ready;
        Arc::new(Self { status: watch::channel(status).0, vocab_size, script: Mutex::default() })
    }

    /// Answers all sequences from now on with these events.
    pub(crate) fn answer(&self, events: Vec<GenerateEvent>) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
    }

    /// What [`GenerateRequest`] promises.
    fn check(&self, request: &GenerateRequest) {
        let GenerateRequest {
            prompt,
            sampling,
            max_tokens,
            stop_token_ids,
            constraint: _,
            priority: _,
        } = request;
        let has = |id: &u32| (*id as usize) < self.vocab_size;
        assert!(!prompt.is_empty() && prompt.iter().all(has), "{prompt:?}");
        assert!(stop_token_ids.iter().all(has), "{stop_token_ids:?}");
        let context_length = self.status.borrow().max_model_len;
        assert!(*max_tokens >= 1 && prompt.len() + *max_tokens as usize <= context_length);
        let SamplingParams { temperature, top_p, min_p, .. } = *sampling;
        assert!((0.0..=2.0).contains(&temperature), "temperature {temperature}");
        assert!(top_p > 0.0 && top_p <= 1.0, "top_p {top_p}");
        assert!((0.0..=1.0).contains(&min_p), "min_p {min_p}");
        for penalty in [sampling.presence_penalty, sampling.frequency_penalty] {
            assert!((-2.0..=2.0).contains(&penalty), "penalty {penalty}");
        }
        assert!(sampling.logit_bias.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(sampling.logit_bias.iter().all(|(id, bias)| has(id) && bias.abs() <= 100.0));
        assert!(sampling.num_top_logprobs <= 20);
    }
}

impl Generate for Engine {
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        self.check(&request);
        let script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match script.as_ref() {
            None => Err(SubmitError::NotReady {
                reason: "there are no workers".to_owned(),
                retry_after: Duration::from_secs(1),
            }),
            Some(script) => {
                let (events, receiver) = mpsc::channel(script.len().max(1));
                for event in script {
                    events.try_send(event.clone()).expect("there is room for the whole script");
                }
                Ok(Generation::new(receiver))
            }
        };
        Box::pin(async move { result })
    }

    fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.status.subscribe()
    }
}
