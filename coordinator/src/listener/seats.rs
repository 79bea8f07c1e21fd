//! The places of a listener's connections.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// A bounded number of places. One that has had nothing to do for longest is given to the next that comes.
#[derive(Clone, Debug)]
pub(super) struct Seats(Arc<Mutex<State>>);

/// A connection's place. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    id: u64,
    evicted: CancellationToken,
}

#[derive(Debug)]
struct State {
    max: usize,
    /// Counts everything that happens: the older, the smaller.
    now: u64,
    taken: BTreeMap<u64, Taken>,
    /// Seats without a request, by the time at which they became so.
    idle: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Taken {
    evict: CancellationToken,
    /// Its key among the idle ones.
    idle_since: Option<u64>,
}

// === impl Seats ===

impl Seats {
    pub(super) fn new(max: usize) -> Self {
        let (taken, idle) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { max, now: 0, taken, idle })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if need be that of an idle connection; `None` if all are busy.
    pub(super) fn take(&self) -> Option<Arc<Seat>> {
        let mut state = self.lock();
        if state.taken.len() >= state.max {
            let (_, oldest) = state.idle.pop_first()?;
            if let Some(taken) = state.taken.remove(&oldest) {
                taken.evict.cancel();
            }
        }
        let evicted = CancellationToken::new();
        let id = state.tick();
        state.taken.insert(id, Taken { evict: evicted.clone(), idle_since: Some(id) });
        state.idle.insert(id, id);
        Some(Arc::new(Seat { seats: self.clone(), id, evicted }))
    }

    #[cfg(test)]
    pub(super) fn num_taken(&self) -> usize {
        self.lock().taken.len()
    }
}

// === impl State ===

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

// === impl Seat ===

impl Seat {
    /// Has a request: the place is safe.
    pub(super) fn busy(&self) {
        let mut state = self.seats.lock();
        let since = state.taken.get_mut(&self.id).and_then(|taken| taken.idle_since.take());
        if let Some(since) = since {
            state.idle.remove(&since);
        }
    }

    /// Has none any more.
    pub(super) fn idle(&self) {
        let mut state = self.seats.lock();
        let now = state.tick();
        let Some(taken) = state.taken.get_mut(&self.id) else { return };
        if taken.idle_since.is_none() {
            taken.idle_since = Some(now);
            state.idle.insert(now, self.id);
        }
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Waits until the place is given to another connection.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.lock();
        let taken = state.taken.remove(&self.id);
        if let Some(since) = taken.and_then(|taken| taken.idle_since) {
            state.idle.remove(&since);
        }
    }
}
