//! A bucket that leaks: what was used within about a minute, and whether more fits.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// Parts of a unit. With so many, a limit per minute leaks that many parts per nanosecond, and nothing is rounded.
const PARTS: u128 = 60_000_000_000;

/// What is left of what was put in. It holds one minute's limit and leaks at the limit's rate (the generic cell rate
/// algorithm, told as a bucket). It may be overfull: an answer's tokens are known only once they are there. The limit is
/// passed in, so that a change of it counts at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: u128,
    at: Instant,
}

/// A limit and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Units per minute.
    pub limit: u64,
    /// Units that may be used at once.
    pub remaining: u64,
    /// Until all of the limit may be used again.
    pub reset: Duration,
}

// === impl Bucket ===

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: 0, at: now }
    }

    /// Puts `amount` in if it fits, else says after how long it will. What is more than the limit fits when the bucket is
    /// empty: it could never be served otherwise, and the overflow is waited for afterwards.
    pub(super) fn take(
        &mut self,
        limit: NonZeroU32,
        amount: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        self.leak(limit, now);
        let room = (PARTS * u128::from(limit.get())).saturating_sub(parts(amount));
        if self.level > room {
            return Err(leak_time(self.level - room, limit));
        }
        self.level += parts(amount);
        Ok(())
    }

    /// Puts `amount` in, whether or not it fits.
    pub(super) fn charge(&mut self, limit: NonZeroU32, amount: u64, now: Instant) {
        self.leak(limit, now);
        self.level = self.level.saturating_add(parts(amount));
    }

    /// Takes out what was put in for nothing.
    pub(super) fn refund(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(parts(amount));
    }

    pub(super) fn allowance(&mut self, limit: NonZeroU32, now: Instant) -> Allowance {
        self.leak(limit, now);
        let room = (PARTS * u128::from(limit.get())).saturating_sub(self.level);
        Allowance {
            limit: limit.get().into(),
            remaining: u64::try_from(room / PARTS).unwrap_or(u64::MAX),
            reset: leak_time(self.level, limit),
        }
    }

    pub(super) fn is_empty(&mut self, limit: NonZeroU32, now: Instant) -> bool {
        self.leak(limit, now);
        self.level == 0
    }

    fn leak(&mut self, limit: NonZeroU32, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        self.level = self.level.saturating_sub(elapsed.saturating_mul(limit.get().into()));
        self.at = self.at.max(now);
    }
}

fn parts(amount: u64) -> u128 {
    PARTS * u128::from(amount)
}

/// How long it takes until so much has leaked.
fn leak_time(level: u128, limit: NonZeroU32) -> Duration {
    let nanos = level.div_ceil(limit.get().into());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
