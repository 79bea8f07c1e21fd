//! Limits of keys: requests and tokens per minute, and requests at once.
//!
//! Each coordinator counts for itself: of several, each grants the whole limit. Nothing here waits, reads a clock or
//! fails; time is passed in.
//!
//! Tokens per minute are charged in two parts. The prompt's are charged when the request begins, because they are known
//! then; it waits if they do not fit. The answer's are charged as they come, because charging `max_tokens` beforehand would
//! refuse most of what would have fitted. So a key can exceed its limit by the answers in progress, and waits for the
//! excess afterwards: over time, the limit holds.

mod bucket;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::record::{KeyId, KeyLimits};
pub use bucket::Allowance;
use bucket::Bucket;

#[cfg(test)]
mod tests;

/// Keys that are remembered before those at rest are forgotten.
const KEYS_BEFORE_SWEEP: usize = 4096;

/// What all keys have used lately.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    keys: Mutex<BTreeMap<KeyId, Arc<Usage>>>,
}

/// What one key has used lately.
#[derive(Debug)]
pub(super) struct Usage {
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    requests: Bucket,
    tokens: Bucket,
    running: u32,
    /// Those of the last request.
    limits: KeyLimits,
}

/// The limit that a request runs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests per minute.
    Requests,
    /// Tokens per minute.
    Tokens,
    /// Requests at once.
    Concurrent,
}

/// A request that is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OverLimit {
    pub(super) kind: LimitKind,
    pub(super) limit: u32,
    /// `None`: as soon as another request is over.
    pub(super) retry_after: Option<Duration>,
}

/// What a key may still use; `None` where it has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowances {
    /// Requests per minute.
    pub requests: Option<Allowance>,
    /// Tokens per minute.
    pub tokens: Option<Allowance>,
}

// === impl Limiter ===

impl Limiter {
    /// The counts of a key, from now on if there were none.
    pub(super) fn usage(&self, key: KeyId, now: Instant) -> Arc<Usage> {
        // The map is whole after every statement, so a panic elsewhere does not spoil it.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= KEYS_BEFORE_SWEEP && !keys.contains_key(&key) {
            keys.retain(|_, usage| Arc::strong_count(usage) > 1 || !usage.is_at_rest(now));
        }
        Arc::clone(keys.entry(key).or_insert_with(|| Arc::new(Usage::new(now))))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.keys.lock().unwrap().len()
    }
}

// === impl Usage ===

impl Usage {
    pub(super) fn new(now: Instant) -> Self {
        let (empty, limits) = (Bucket::new(now), KeyLimits::default());
        let counts = Counts { requests: empty, tokens: empty, running: 0, limits };
        Self { counts: Mutex::new(counts) }
    }

    /// A request begins, unless it is too much. One that begins must [`Self::leave`].
    pub(super) fn enter(&self, limits: &KeyLimits, now: Instant) -> Result<(), OverLimit> {
        let mut counts = self.counts();
        counts.limits = *limits;
        if let Some(limit) = limits.concurrent_requests
            && counts.running >= limit.get()
        {
            let kind = LimitKind::Concurrent;
            return Err(OverLimit { kind, limit: limit.get(), retry_after: None });
        }
        if let Some(limit) = limits.tokens_per_minute {
            // Without a prompt yet: only what is overdue counts.
            counts.tokens.take(limit, 0, now).map_err(over(LimitKind::Tokens, limit))?;
        }
        if let Some(limit) = limits.requests_per_minute {
            counts.requests.take(limit, 1, now).map_err(over(LimitKind::Requests, limit))?;
        }
        counts.running = counts.running.saturating_add(1);
        Ok(())
    }

    /// A request is over.
    pub(super) fn leave(&self) {
        let mut counts = self.counts();
        counts.running = counts.running.saturating_sub(1);
    }

    /// A prompt's tokens, if they fit.
    pub(super) fn take_tokens(
        &self,
        limits: &KeyLimits,
        tokens: u64,
        now: Instant,
    ) -> Result<(), OverLimit> {
        let Some(limit) = limits.tokens_per_minute else { return Ok(()) };
        let taken = self.counts().tokens.take(limit, tokens, now);
        taken.map_err(over(LimitKind::Tokens, limit))
    }

    /// An answer's tokens, which are there already.
    pub(super) fn charge_tokens(&self, limits: &KeyLimits, tokens: u64, now: Instant) {
        if let Some(limit) = limits.tokens_per_minute {
            self.counts().tokens.charge(limit, tokens, now);
        }
    }

    /// Tokens that were charged and not computed after all.
    pub(super) fn refund_tokens(&self, tokens: u64) {
        self.counts().tokens.refund(tokens);
    }

    pub(super) fn allowances(&self, limits: &KeyLimits, now: Instant) -> Allowances {
        let mut counts = self.counts();
        Allowances {
            requests: limits.requests_per_minute.map(|limit| counts.requests.allowance(limit, now)),
            tokens: limits.tokens_per_minute.map(|limit| counts.tokens.allowance(limit, now)),
        }
    }

    /// Whether forgetting the counts changes nothing.
    fn is_at_rest(&self, now: Instant) -> bool {
        let Counts { mut requests, mut tokens, running, limits } = *self.counts();
        running == 0
            && limits.requests_per_minute.is_none_or(|limit| requests.is_empty(limit, now))
            && limits.tokens_per_minute.is_none_or(|limit| tokens.is_empty(limit, now))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn over(kind: LimitKind, limit: std::num::NonZeroU32) -> impl FnOnce(Duration) -> OverLimit {
    move |wait| OverLimit { kind, limit: limit.get(), retry_after: Some(wait) }
}
