//! The all-to-all between processes: a full mesh of TCP connections, one frame per peer and phase.
//!
//! The thread that computes also drives the sockets, non-blocking with one `poll` for all of them: no second thread has
//! to be woken for a frame to leave or arrive, and rows that exceed the sockets' buffers in both directions cannot
//! block each other.

use std::fmt;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use switchyard_moe::ids::{EpRank, GroupEpoch};
use tokio::time::Instant;

use self::link::{At, Ended, Link, Stop};
use self::wire::Wire;
use super::failure::Failure;
use super::{AbortHandle, AllToAll, Error, Phase};
use crate::metric_definitions as metric;

mod frame;
mod hello;
mod link;
mod listener;
mod wire;

pub use self::frame::FRAME_BYTES_MAX;
pub use self::listener::{Group, JoinError, Listener};

/// How long a rank that stops goes on sending a frame it has begun, so that its notice can follow.
const FAREWELL: Duration = Duration::from_millis(100);

/// One rank's end of the mesh of one epoch. Made by [`Listener::join`].
pub struct Tcp {
    rank: EpRank,
    epoch: GroupEpoch,
    deadline: Duration,
    /// Connections to all other ranks, ascending by rank.
    links: Vec<Link>,
    /// What the last `poll` said of each link.
    ready: Vec<PollFlags>,
    abort: Arc<Abort>,
    /// Becomes readable when `abort` is called.
    woken: UnixStream,
    /// Why this collective is dead.
    failure: Option<Failure>,
}

// === impl Tcp ===

impl Tcp {
    /// Makes a collective of connections that do not block, `[world_size]` with `None` at `rank`.
    fn assemble(
        group: &Group,
        wires: impl IntoIterator<Item = Option<Wire>>,
    ) -> std::io::Result<Self> {
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        let mut links = Vec::new();
        for (peer, wire) in (0..).map(EpRank).zip(wires) {
            let Some(wire) = wire else { continue };
            links.push(Link::new(peer, wire, metric::link_meters(peer)));
        }
        Ok(Self {
            rank: group.rank,
            epoch: group.epoch,
            deadline: group.exchange_deadline,
            ready: vec![PollFlags::empty(); links.len()],
            links,
            abort: Arc::new(Abort { called: AtomicBool::new(false), waker }),
            woken,
            failure: None,
        })
    }

    fn pass(
        &mut self,
        phase: Phase,
        outbound: &[Vec<u8>],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), Error> {
        let me = self.rank.0 as usize;
        inbound[me].clear();
        inbound[me].extend_from_slice(&outbound[me]);
        let at = At { epoch: self.epoch, phase };
        for link in &mut self.links {
            let len = outbound[link.peer.0 as usize].len();
            if len as u64 > FRAME_BYTES_MAX {
                let detail = format!("{len} bytes for one peer, the limit is {FRAME_BYTES_MAX}");
                return Err(Error::Malformed { culprit: self.rank, phase, detail });
            }
            link.begin(self.rank, at, len);
        }
        self.ready.fill(PollFlags::IN | PollFlags::OUT);

        let began = Instant::now();
        loop {
            if self.abort.called.load(Ordering::Acquire) {
                return Err(Error::Aborted { phase });
            }
            if let Err((peer, stop)) = self.advance(began, outbound, inbound) {
                return Err(self.explain(peer, stop, phase));
            }
            let late = self.links.iter().find(|link| !link.has_received());
            let late = late.or_else(|| self.links.iter().find(|link| !link.has_sent()));
            let Some(late) = late else { return Ok(()) };
            let left = self.deadline.saturating_sub(began.elapsed());
            if left.is_zero() {
                let waited_ms = self.deadline.as_millis() as u64;
                let (culprit, observer) = (late.peer, self.rank);
                return Err(Error::Timeout { culprit, observer, phase, waited_ms });
            }
            self.wait(left);
        }
    }

    /// Sends and receives what the sockets take and have, without waiting. All sends come first: somebody waits for
    /// them.
    fn advance(
        &mut self,
        began: Instant,
        outbound: &[Vec<u8>],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), (EpRank, Stop)> {
        for (link, ready) in self.links.iter_mut().zip(&self.ready) {
            if ready.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                let rows = &outbound[link.peer.0 as usize];
                link.send(rows).map_err(|stop| (link.peer, stop))?;
            }
        }
        for (link, ready) in self.links.iter_mut().zip(&self.ready) {
            if ready.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP) {
                let had_received = link.has_received();
                let rows = &mut inbound[link.peer.0 as usize];
                link.receive(rows).map_err(|stop| (link.peer, stop))?;
                if link.has_received() && !had_received {
                    link.meters.wait_seconds.record(began.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Waits until a socket has something for us, the abort handle is used, or `limit` has passed.
    fn wait(&mut self, limit: Duration) {
        let mut fds = Vec::with_capacity(self.links.len() + 1);
        fds.push(PollFd::new(&self.woken, PollFlags::IN));
        for link in &self.links {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, link.wants_bytes());
            events.set(PollFlags::OUT, !link.has_sent());
            // A link that wants nothing must not be polled: its end would be reported again and again.
            if !events.is_empty() {
                fds.push(PollFd::new(link.wire.socket(), events));
            }
        }
        wait_for(&mut fds, limit);
        let mut results = fds[1..].iter().map(PollFd::revents);
        for (link, ready) in self.links.iter().zip(&mut self.ready) {
            let was_polled = link.wants_bytes() || !link.has_sent();
            *ready = match was_polled.then(|| results.next()).flatten() {
                Some(revents) => revents,
                None => PollFlags::empty(),
            };
        }
    }

    /// The error for a link that cannot go on.
    fn explain(&mut self, peer: EpRank, stop: Stop, phase: Phase) -> Error {
        match stop {
            Stop::Wrong(error) => error,
            Stop::Told(failure) => failure.observed_by(self.rank, phase),
            Stop::Gone => match self.links.iter_mut().find_map(Link::find_notice) {
                Some(failure) => failure.observed_by(self.rank, phase),
                None => {
                    let culprit = self.first_to_go(peer);
                    Error::PeerLost { culprit, observer: self.rank, phase }
                }
            },
        }
    }

    /// Which of the ranks whose connections have ended is to blame, none having sent a notice. A survivor fails to send
    /// one only if it closed within a frame that we did not take, so who ended between frames comes first.
    fn first_to_go(&self, noticed: EpRank) -> EpRank {
        let ended = |how| self.links.iter().find(move |link| link.ended == Some(how));
        let first = ended(Ended::BetweenFrames).or_else(|| ended(Ended::WithinFrame));
        first.map_or(noticed, |link| link.peer)
    }

    /// Tells the peers why this rank stops, so that they do not take it for the culprit. Best effort.
    fn farewell(&mut self, failure: &Failure, outbound: &[Vec<u8>]) {
        let notice = frame::encode_notice(failure, self.epoch);
        let began = Instant::now();
        loop {
            for link in &mut self.links {
                // An error has the link marked as one that takes no more.
                let _ = link.send(&outbound[link.peer.0 as usize]);
                link.notify(&notice);
            }
            let mut fds: Vec<_> = self
                .links
                .iter()
                .filter(|link| link.takes_more && link.ended.is_none())
                .map(|link| PollFd::new(link.wire.socket(), PollFlags::OUT))
                .collect();
            let left = FAREWELL.saturating_sub(began.elapsed());
            if fds.is_empty() || left.is_zero() {
                return;
            }
            wait_for(&mut fds, left);
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) {
    let limit = Timespec::try_from(limit).ok();
    // Its only errors are an interruption and a lack of memory; the caller looks at its deadline and comes again.
    let _ = poll(fds, limit.as_ref());
}

impl AllToAll for Tcp {
    type Buffer = Vec<u8>;

    fn rank(&self) -> EpRank {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.links.len() + 1
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
        assert_eq!(outbound.len(), self.world_size(), "one outbound buffer per rank");
        assert_eq!(inbound.len(), self.world_size(), "one inbound buffer per rank");
        if self.abort.called.load(Ordering::Acquire) && self.failure.is_some() {
            return Err(Error::Aborted { phase });
        }
        if let Some(failure) = &self.failure {
            return Err(failure.observed_by(self.rank, phase));
        }
        let result = self.pass(phase, outbound, inbound);
        if let Err(error) = &result {
            let failure = Failure::of(error, self.rank);
            self.farewell(&failure, outbound);
            self.failure = Some(failure);
        }
        result
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        Box::new(Arc::clone(&self.abort))
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("rank", &self.rank)
            .field("epoch", &self.epoch)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

/// Ends the exchanges of one [`Tcp`].
#[derive(Debug)]
struct Abort {
    called: AtomicBool,
    waker: UnixStream,
}

impl AbortHandle for Arc<Abort> {
    fn abort(&self) {
        if !self.called.swap(true, Ordering::AcqRel) {
            // The flag alone ends a later exchange; the byte, never read, ends the one that waits.
            let _ = (&self.waker).write(&[1]);
        }
    }

    fn is_aborted(&self) -> bool {
        self.called.load(Ordering::Acquire)
    }
}
