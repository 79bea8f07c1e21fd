//! What a connection is doing, and whether it takes too long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::seats::Seat;
use crate::options::ConnectionLimits;

/// How a connection of HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One connection, as its bytes and its requests show it.
#[derive(Debug)]
pub(super) struct Activity {
    seat: Arc<Seat>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    in_flight: u32,
    /// What it is doing while nothing is in flight.
    stage: Stage,
    since: Instant,
    /// How much of the preface of HTTP/2 has come; `None` once it is clear that it is another protocol.
    preface: Option<usize>,
    /// Since when it takes no bytes.
    blocked: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There was no request yet.
    New,
    /// A request has begun to come.
    Header,
    /// There is nothing to do.
    Idle,
}

/// What takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The first request's header.
    Greeting,
    /// A later request's header.
    Header,
    /// The next request.
    Idle,
    /// The client's reading.
    Writing,
}

/// A request that is in flight until this is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

// === impl Activity ===

impl Activity {
    pub(super) fn new(seat: Arc<Seat>, now: Instant) -> Self {
        let state =
            State { in_flight: 0, stage: Stage::New, since: now, preface: Some(0), blocked: None };
        Self { seat, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut state = self.lock();
        state.in_flight += 1;
        if state.in_flight == 1 {
            self.seat.busy();
        }
        drop(state);
        Busy(Arc::clone(self))
    }

    /// Bytes have come.
    pub(super) fn has_read(&self, bytes: &[u8], now: Instant) {
        let mut state = self.lock();
        if state.expects_preface() {
            state.match_preface(bytes);
            if state.is_http2() {
                // Requests are among other frames from now on, so silence is all that can be noticed.
                (state.stage, state.since) = (Stage::Idle, now);
            }
        }
        if state.in_flight == 0 && state.stage == Stage::Idle && !state.is_http2() {
            (state.stage, state.since) = (Stage::Header, now);
        }
    }

    /// Bytes were taken, or were not.
    pub(super) fn has_written(&self, is_blocked: bool, now: Instant) {
        let mut state = self.lock();
        state.blocked = if is_blocked { state.blocked.or(Some(now)) } else { None };
    }

    /// What takes too long by now.
    pub(super) fn overdue(&self, limits: &ConnectionLimits, now: Instant) -> Option<Overdue> {
        let state = self.lock();
        let longer = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        if state.blocked.is_some_and(|since| longer(since, limits.write_timeout)) {
            return Some(Overdue::Writing);
        }
        if state.in_flight > 0 {
            return None;
        }
        let (limit, overdue) = match state.stage {
            Stage::New => (limits.header_read_timeout, Overdue::Greeting),
            Stage::Header => (limits.header_read_timeout, Overdue::Header),
            Stage::Idle => (limits.keep_alive_timeout, Overdue::Idle),
        };
        longer(state.since, limit).then_some(overdue)
    }

    /// Waits until another connection has this one's place.
    pub(super) async fn evicted(&self) {
        self.seat.evicted().await;
    }
}

// === impl State ===

impl State {
    fn is_http2(&self) -> bool {
        self.preface == Some(PREFACE.len())
    }

    fn expects_preface(&self) -> bool {
        self.preface.is_some() && !self.is_http2()
    }

    fn match_preface(&mut self, bytes: &[u8]) {
        let Some(matched) = self.preface else { return };
        let expected = &PREFACE[matched..];
        let len = expected.len().min(bytes.len());
        self.preface = (expected[..len] == bytes[..len]).then_some(matched + len);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Self(activity) = self;
        let mut state = activity.lock();
        state.in_flight -= 1;
        if state.in_flight == 0 {
            (state.stage, state.since) = (Stage::Idle, Instant::now());
            // Under the lock, so that a request that begins now is not taken for idle.
            activity.seat.idle();
        }
    }
}
