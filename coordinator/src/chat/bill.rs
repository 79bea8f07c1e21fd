//! What an answer is charged, while it is generated and at its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Error;
use super::usage::Finished;
use crate::auth::ledger::Tokens;
use crate::auth::{Charge, Lease};

/// The charge of an answer, shared by its choices. Dropped before [`close`](Self::close), it still charges the tokens that
/// were generated.
#[derive(Clone, Debug)]
pub(super) struct Bill(Arc<Mutex<Option<Charge>>>);

impl Bill {
    /// Charges the prompt to `lease`, if somebody pays.
    ///
    /// # Errors
    /// [`Error::Denied`] when the key may not use the model, or not that much; nothing is charged then.
    pub(super) fn open(
        lease: Option<&Lease>,
        model: &str,
        prompt_tokens: usize,
    ) -> Result<Self, Error> {
        // No part of a prompt is taken from a cache yet.
        let charge = lease.map(|lease| lease.begin(model, count(prompt_tokens), 0)).transpose()?;
        Ok(Self(Arc::new(Mutex::new(charge))))
    }

    /// Tears up the bill of a request that never reached the engine.
    pub(super) fn withdraw(&mut self) {
        if let Some(charge) = self.charge().take() {
            charge.withdraw();
        }
    }

    /// One more token was generated.
    pub(super) fn token(&self) {
        if let Some(charge) = self.charge().as_mut() {
            charge.generated(1, 0);
        }
    }

    /// Charges what the client is about to be told. Returns once that is durable.
    ///
    /// # Errors
    /// [`Error::Unrecorded`]; the client must not be told then.
    pub(super) async fn close(&self, finished: &Finished) -> Result<(), Error> {
        let Some(mut charge) = self.charge().take() else { return Ok(()) };
        charge.settle(Tokens {
            prompt: count(finished.prompt.prompt_tokens),
            cached: count(finished.prompt.prompt_cache_hit_tokens),
            completion: count(finished.completion.completion_tokens),
            reasoning: count(finished.completion.reasoning_tokens.unwrap_or(0)),
        });
        Ok(charge.finish().await?)
    }

    fn charge(&self) -> MutexGuard<'_, Option<Charge>> {
        // Whole after every statement, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(tokens: usize) -> u64 {
    u64::try_from(tokens).unwrap_or(u64::MAX)
}
