//! The ranks of a group as threads of one process: a mailbox in shared memory.
//!
//! Used by tests and by `verify`; it obeys the same contract as the collectives between processes.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switchyard_moe::ids::{EpRank, GroupEpoch};
use tokio::time::Instant;

use super::failure::Failure;
use super::{AbortHandle, AllToAll, Error, Phase};

/// Makes the collectives of one group of threads, indexed by rank. An exchange fails when `deadline` has passed since
/// it began.
#[must_use]
pub fn mesh(world_size: usize, epoch: GroupEpoch, deadline: Duration) -> Vec<Local> {
    let hub = Arc::new(Hub {
        state: Mutex::new(State {
            parcels: (0..world_size * world_size).map(|_| None).collect(),
            aborted: vec![false; world_size],
            gone: vec![false; world_size],
            failure: None,
        }),
        changed: (0..world_size).map(|_| Condvar::new()).collect(),
    });
    (0..world_size as u32)
        .map(|rank| Local {
            hub: Arc::clone(&hub),
            rank: EpRank(rank),
            world_size,
            epoch,
            deadline,
            spare: Vec::new(),
        })
        .collect()
}

/// One rank's end of the mailbox. Dropping it is what the death of a process is to `tcp`: peers that wait for this
/// rank learn of it at once.
pub struct Local {
    hub: Arc<Hub>,
    rank: EpRank,
    world_size: usize,
    epoch: GroupEpoch,
    deadline: Duration,
    /// Emptied buffers for later parcels.
    spare: Vec<Vec<u8>>,
}

struct Hub {
    state: Mutex<State>,
    /// One per rank: something that concerns the rank has changed.
    changed: Vec<Condvar>,
}

struct State {
    /// What `from` has sent and `to` has not yet taken, at `from * world_size + to`.
    parcels: Vec<Option<Parcel>>,
    aborted: Vec<bool>,
    /// Ranks whose [`Local`] was dropped. That matters only to who still waits for them.
    gone: Vec<bool>,
    /// The first failure of the group. It is everybody's: the ones that stop because of it are not culprits.
    failure: Option<Failure>,
}

struct Parcel {
    phase: Phase,
    bytes: Vec<u8>,
}

// === impl Local ===

impl AllToAll for Local {
    type Buffer = Vec<u8>;

    fn rank(&self) -> EpRank {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    fn exchange(
        &mut self,
        phase: Phase,
        outbound: &[Vec<u8>],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), Error> {
        assert_eq!(outbound.len(), self.world_size, "one outbound buffer per rank");
        assert_eq!(inbound.len(), self.world_size, "one inbound buffer per rank");
        let result = self.pass(phase, outbound, inbound);
        if let Err(error) = &result {
            let failure = Failure::of(error, self.rank);
            self.hub.update(|state| {
                state.failure.get_or_insert(failure);
            });
        }
        result
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        Box::new(Abort { hub: Arc::clone(&self.hub), rank: self.rank })
    }
}

impl Local {
    fn pass(
        &mut self,
        phase: Phase,
        outbound: &[Vec<u8>],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), Error> {
        let me = self.rank.0 as usize;
        inbound[me].clear();
        inbound[me].extend_from_slice(&outbound[me]);
        // Copied before the lock is taken, so that ranks copy at the same time.
        let mut to_send: Vec<Option<Parcel>> = (0..self.world_size)
            .map(|to| (to != me).then(|| self.pack(phase, &outbound[to])))
            .collect();
        let mut waiting: Vec<bool> = (0..self.world_size).map(|from| from != me).collect();

        let began = Instant::now();
        let hub = Arc::clone(&self.hub);
        let mut state = hub.lock();
        loop {
            if state.aborted[me] {
                return Err(Error::Aborted { phase });
            }
            self.post(&mut state, &mut to_send);
            self.collect(&mut state, phase, &mut waiting, inbound)?;
            let missing = (0..self.world_size).filter(|&r| waiting[r] || to_send[r].is_some());
            let Some(late) = missing.clone().next() else { return Ok(()) };
            if let Some(failure) = &state.failure {
                return Err(failure.observed_by(self.rank, phase));
            }
            if let Some(gone) = missing.clone().find(|&r| state.gone[r]) {
                let culprit = EpRank(gone as u32);
                return Err(Error::PeerLost { culprit, observer: self.rank, phase });
            }
            let left = self.deadline.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout {
                    culprit: EpRank(late as u32),
                    observer: self.rank,
                    phase,
                    waited_ms: self.deadline.as_millis() as u64,
                });
            }
            state =
                hub.changed[me].wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Copies `bytes` into a buffer that an earlier exchange has emptied.
    fn pack(&mut self, phase: Phase, bytes: &[u8]) -> Parcel {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        Parcel { phase, bytes: buffer }
    }

    /// Posts the parcels whose place is free. A place is taken while the peer is one phase behind.
    fn post(&self, state: &mut State, to_send: &mut [Option<Parcel>]) {
        let me = self.rank.0 as usize;
        for (to, parcel) in to_send.iter_mut().enumerate() {
            let place = &mut state.parcels[me * self.world_size + to];
            if parcel.is_some() && place.is_none() {
                *place = parcel.take();
                self.hub.changed[to].notify_one();
            }
        }
    }

    /// Takes the parcels that have arrived.
    fn collect(
        &mut self,
        state: &mut State,
        phase: Phase,
        waiting: &mut [bool],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), Error> {
        let me = self.rank.0 as usize;
        for from in 0..self.world_size {
            if !waiting[from] {
                continue;
            }
            let Some(parcel) = state.parcels[from * self.world_size + me].take() else { continue };
            self.hub.changed[from].notify_one();
            if parcel.phase != phase {
                return Err(Error::Malformed {
                    culprit: EpRank(from as u32),
                    phase,
                    detail: format!("it belongs to {}", parcel.phase),
                });
            }
            self.spare.push(std::mem::replace(&mut inbound[from], parcel.bytes));
            waiting[from] = false;
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.hub.update(|state| state.gone[self.rank.0 as usize] = true);
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local")
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

// === impl Hub ===

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single assignment, so a panic elsewhere leaves it sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.iter().for_each(Condvar::notify_one);
    }
}

/// Ends the exchanges of one [`Local`].
struct Abort {
    hub: Arc<Hub>,
    rank: EpRank,
}

impl AbortHandle for Abort {
    fn abort(&self) {
        self.hub.update(|state| state.aborted[self.rank.0 as usize] = true);
    }

    fn is_aborted(&self) -> bool {
        self.hub.lock().aborted[self.rank.0 as usize]
    }
}

impl fmt::Debug for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Abort").field(&self.rank).finish()
    }
}
