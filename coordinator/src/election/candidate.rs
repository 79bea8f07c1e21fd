//! What a candidate makes of what it sees of the lease. Pure: no await, no clock, no I/O.
//!
//! Two machines' clocks are never compared. A record's age is the time since this candidate first saw it, which is never
//! more than the time since it was written; and a leader counts from before it asked for its renewal to be written, which is
//! never less. So the leader stops [`Timing::renew_deadline`] after a moment from which everybody else waits
//! [`Timing::lease`]. Clocks may run at different speeds, as long as they differ by less than the two times do.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lease lasts, and how often it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    lease: Duration,
    renew_deadline: Duration,
    retry: Duration,
}

/// Times that would make two leaders, or none for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a lease of {} s, renewed within {} s and asked for every {} s: each must be longer than the next, and the last not 0",
    .0.lease.as_secs(), .0.renew_deadline.as_secs(), .0.retry.as_secs()
)]
pub struct TimingError(Timing);

/// The lease as all candidates see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Who leads; `None`: nobody, it was given up.
    pub(super) holder: Option<String>,
    /// How long it lasts without a renewal.
    pub(super) duration: Duration,
    /// How often the holder has changed.
    pub(super) transitions: u32,
}

/// A record, and which of all that have been stored it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) version: String,
}

/// What to do next about the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Write this over what was seen, if nobody else has.
    Write(Record),
    /// It is another's.
    Wait,
}

/// One who wants to lead, or does.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
    leads_until: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    stored: Stored,
    /// When this version was seen first.
    since: Instant,
}

// === impl Timing ===

impl Timing {
    /// Others wait `lease` after a renewal, the leader stops `renew_deadline` after it, and every `retry` somebody asks.
    ///
    /// # Errors
    /// Unless each is longer than the next, and the last is something.
    pub fn new(
        lease: Duration,
        renew_deadline: Duration,
        retry: Duration,
    ) -> Result<Self, TimingError> {
        let timing = Self { lease, renew_deadline, retry };
        if lease > renew_deadline && renew_deadline > retry && !retry.is_zero() {
            Ok(timing)
        } else {
            Err(TimingError(timing))
        }
    }

    /// How long others wait after they saw a renewal.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// How long the leader leads after it asked for a renewal that it got.
    #[must_use]
    pub fn renew_deadline(&self) -> Duration {
        self.renew_deadline
    }

    /// Time between two attempts to get or to renew the lease.
    #[must_use]
    pub fn retry(&self) -> Duration {
        self.retry
    }
}

impl Default for Timing {
    /// Those of Kubernetes' own components: 15, 10 and 2 s.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

// === impl Record ===

impl Record {
    fn is_held_by(&self, identity: &str) -> bool {
        self.holder.as_deref() == Some(identity)
    }
}

// === impl Candidate ===

impl Candidate {
    pub(super) fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, leads_until: None }
    }

    /// Takes note of what is stored. `now` is when the answer was there, not when it was asked for.
    pub(super) fn saw(&mut self, stored: Option<Stored>, now: Instant) {
        let is_known =
            |seen: &Seen| stored.as_ref().is_some_and(|new| new.version == seen.stored.version);
        if !self.seen.as_ref().is_some_and(is_known) {
            self.seen = stored.map(|stored| Seen { stored, since: now });
        }
    }

    /// What to do about what was seen last.
    pub(super) fn next_move(&self, now: Instant) -> Move {
        let Some(Seen { stored: Stored { record, .. }, since }) = &self.seen else {
            return Move::Write(self.record(0));
        };
        if record.is_held_by(&self.identity) {
            return Move::Write(self.record(record.transitions));
        }
        if record.holder.is_some() && now < *since + record.duration {
            return Move::Wait;
        }
        Move::Write(self.record(record.transitions.saturating_add(1)))
    }

    /// What [`next_move`](Self::next_move) would write over.
    pub(super) fn seen(&self) -> Option<&Stored> {
        self.seen.as_ref().map(|seen| &seen.stored)
    }

    /// Takes note that its record is stored, which it began to try at `began`.
    pub(super) fn wrote(&mut self, stored: Stored, began: Instant, now: Instant) {
        self.saw(Some(stored), now);
        self.leads_until = Some(began + self.timing.renew_deadline);
    }

    /// Until when it leads; `None` before it ever has.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    /// Who leads, as far as it has seen.
    pub(super) fn leader(&self) -> Option<&str> {
        self.seen.as_ref().and_then(|seen| seen.stored.record.holder.as_deref())
    }

    /// What gives the lease up, if it is this one's.
    pub(super) fn resignation(&self) -> Option<Record> {
        let record = &self.seen()?.record;
        // As short as a Lease can be: whoever does not know that nobody leads waits for it.
        let duration = Duration::from_secs(1);
        record.is_held_by(&self.identity).then_some(Record {
            holder: None,
            duration,
            transitions: record.transitions,
        })
    }

    fn record(&self, transitions: u32) -> Record {
        let holder = Some(self.identity.clone());
        Record { holder, duration: self.timing.lease, transitions }
    }
}
