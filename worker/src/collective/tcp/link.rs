//! One connection to one peer, seen from the thread that exchanges. Nothing here waits.

use std::io::{self, ErrorKind, IoSlice};

use switchyard_moe::ids::{EpRank, GroupEpoch};

use super::super::failure::Failure;
use super::super::{Error, Phase};
use super::frame::{self, HEADER_BYTES, Header, Kind, NOTICE_BYTES_MAX};
use super::wire::Wire;
use crate::metric_definitions::LinkMeters;

/// Bytes read from a socket at once, so that a small frame takes one read for header and rows.
const STAGING_BYTES: usize = 64 << 10;
/// Reads of a stopping peer's socket, 64 MiB, before it is believed to have nothing to say.
const NOTICE_READS_MAX: usize = 1024;
const _: () = assert!(STAGING_BYTES >= 2 * (HEADER_BYTES + NOTICE_BYTES_MAX));

/// A connection that is part of a mesh.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: EpRank,
    pub(super) wire: Wire,
    /// Bytes read but not yet used: `staging[begin..end]`.
    staging: Box<[u8]>,
    begin: usize,
    end: usize,
    /// The exchange under way or last done.
    at: At,
    inbound: Inbound,
    /// Header of the frame to send, and how much of header and rows together has been sent.
    header: [u8; HEADER_BYTES],
    sent: usize,
    to_send: usize,
    /// The peer's side is closed.
    pub(super) ended: Option<Ended>,
    /// Neither was the notice sent nor has sending failed.
    pub(super) takes_more: bool,
    pub(super) meters: LinkMeters,
}

/// An exchange of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct At {
    pub(super) epoch: GroupEpoch,
    pub(super) phase: Phase,
}

/// How far the frame of the current phase has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inbound {
    Header,
    Rows { len: usize, filled: usize },
    Done,
}

/// How a peer's side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    BetweenFrames,
    WithinFrame,
}

/// Why a link cannot go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// The connection is gone; who is to blame is for the mesh to find out.
    Gone,
    /// The peer has said why it stops.
    Told(Failure),
    /// The peer sent what it must not.
    Wrong(Error),
}

// === impl Link ===

impl Link {
    pub(super) fn new(peer: EpRank, wire: Wire, meters: LinkMeters) -> Self {
        Self {
            peer,
            wire,
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            begin: 0,
            end: 0,
            at: At::default(),
            inbound: Inbound::Done,
            header: [0; HEADER_BYTES],
            sent: 0,
            to_send: 0,
            ended: None,
            takes_more: true,
            meters,
        }
    }

    /// Prepares for one exchange, in which `me` will send `len` bytes of rows.
    pub(super) fn begin(&mut self, me: EpRank, at: At, len: usize) {
        let header = Header {
            kind: Kind::Rows,
            rank: me,
            epoch: at.epoch,
            phase: Some(at.phase),
            len: len as u64,
        };
        self.at = at;
        self.header = header.encode();
        self.sent = 0;
        self.to_send = HEADER_BYTES + len;
        self.inbound = Inbound::Header;
    }

    pub(super) fn has_sent(&self) -> bool {
        self.sent == self.to_send && !self.wire.has_unsent()
    }

    pub(super) fn has_received(&self) -> bool {
        self.inbound == Inbound::Done
    }

    /// Whether bytes from the peer are of use now. A peer may be one phase ahead; of that frame only the header is
    /// read, because a notice in its place ends the exchange under way.
    pub(super) fn wants_bytes(&self) -> bool {
        self.ended.is_none() && !(self.has_received() && self.staged() >= HEADER_BYTES)
    }

    fn staged(&self) -> usize {
        self.end - self.begin
    }

    /// Sends what the socket takes.
    pub(super) fn send(&mut self, rows: &[u8]) -> Result<(), Stop> {
        while self.takes_more && !self.has_sent() {
            let wrote = match self.sent.checked_sub(HEADER_BYTES) {
                None => {
                    let header = IoSlice::new(&self.header[self.sent..]);
                    self.wire.write(&[header, IoSlice::new(rows)])
                }
                Some(done) if done < rows.len() => self.wire.write(&[IoSlice::new(&rows[done..])]),
                Some(_) => self.wire.flush().map(|()| 0),
            };
            match wrote {
                Ok(num_bytes) => {
                    self.sent += num_bytes;
                    self.meters.bytes_sent.increment(num_bytes as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.takes_more = false;
                    return Err(Stop::Gone);
                }
            }
        }
        Ok(())
    }

    /// Sends `notice` if it can be sent at once and whole.
    pub(super) fn notify(&mut self, notice: &[u8]) {
        if self.has_sent() && self.takes_more {
            // A peer that cannot take a few bytes will learn of the end by the connection's end.
            let _ = self.wire.write(&[IoSlice::new(notice)]);
            self.takes_more = false;
        }
    }

    /// Takes what has come from the peer and fills `rows` with its frame of this exchange.
    pub(super) fn receive(&mut self, rows: &mut Vec<u8>) -> Result<(), Stop> {
        loop {
            let progressed = match self.inbound {
                Inbound::Header => match self.take_header()? {
                    Some(header) => {
                        self.check(&header)?;
                        make_room(rows, header.len).map_err(|detail| self.malformed(detail))?;
                        self.inbound = Inbound::Rows { len: rows.len(), filled: 0 };
                        true
                    }
                    None => self.fill()?,
                },
                Inbound::Rows { len, filled } if filled == len => {
                    self.inbound = Inbound::Done;
                    true
                }
                Inbound::Rows { filled, .. } => self.fill_rows(rows, filled)?,
                Inbound::Done => return self.look_ahead(),
            };
            if !progressed {
                return Ok(());
            }
        }
    }

    /// The next header, if it is there whole. A notice in its place is the end.
    fn take_header(&mut self) -> Result<Option<Header>, Stop> {
        let header = self.peek_header()?;
        if header.is_some() {
            self.begin += HEADER_BYTES;
        }
        Ok(header)
    }

    fn peek_header(&self) -> Result<Option<Header>, Stop> {
        let staged = &self.staging[self.begin..self.end];
        let Some((header, body)) = staged.split_first_chunk() else { return Ok(None) };
        let header = Header::decode(header).map_err(|detail| self.malformed(detail))?;
        match (header.kind, body.get(..header.len as usize)) {
            (Kind::Rows, _) => Ok(Some(header)),
            (Kind::Notice, None) => Ok(None),
            (Kind::Notice, Some(body)) => Err(frame::decode_notice(&header, body)
                .map_or_else(|detail| self.malformed(detail), Stop::Told)),
        }
    }

    /// With the rows of this phase taken, reads on until the next header is there, to find a notice.
    fn look_ahead(&mut self) -> Result<(), Stop> {
        while self.ended.is_none() && self.peek_header()?.is_none() {
            match self.fill() {
                Ok(true) => {}
                // Said at once: the peer, told by TLS, is about to go.
                Err(stop @ Stop::Wrong(_)) => return Err(stop),
                // An end after the rows of this phase is the next phase's business.
                Ok(false) | Err(Stop::Gone | Stop::Told(_)) => break,
            }
        }
        Ok(())
    }

    fn check(&self, header: &Header) -> Result<(), Stop> {
        let At { epoch, phase } = self.at;
        if header.epoch != epoch {
            let (culprit, theirs) = (self.peer, header.epoch);
            return Err(Stop::Wrong(Error::StaleEpoch { culprit, theirs, ours: epoch }));
        }
        if header.rank != self.peer {
            return Err(self.malformed(format!("it says to come from rank {}", header.rank)));
        }
        match header.phase {
            Some(theirs) if theirs == phase => Ok(()),
            Some(theirs) => Err(self.malformed(format!("it belongs to {theirs}"))),
            None => Err(self.malformed("it belongs to no phase".to_owned())),
        }
    }

    fn malformed(&self, detail: String) -> Stop {
        Stop::Wrong(Error::Malformed { culprit: self.peer, phase: self.at.phase, detail })
    }

    /// Continues the rows, from staging first, then straight from the socket.
    fn fill_rows(&mut self, rows: &mut [u8], filled: usize) -> Result<bool, Stop> {
        let missing = &mut rows[filled..];
        let num_bytes = if self.staged() > 0 {
            let num_bytes = missing.len().min(self.staged());
            missing[..num_bytes].copy_from_slice(&self.staging[self.begin..self.begin + num_bytes]);
            self.begin += num_bytes;
            num_bytes
        } else {
            match self.wire.read(missing) {
                Ok(Some(num_bytes)) => num_bytes,
                Ok(None) => return Ok(false),
                Err(error) => return Err(self.broken(&error, true)),
            }
        };
        self.inbound = Inbound::Rows { len: rows.len(), filled: filled + num_bytes };
        Ok(true)
    }

    /// Reads into staging what has come; false if nothing has.
    fn fill(&mut self) -> Result<bool, Stop> {
        self.staging.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        match self.wire.read(&mut self.staging[self.end..]) {
            Ok(Some(num_bytes)) => {
                self.end += num_bytes;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                let within = self.staged() > 0;
                Err(self.broken(&error, within))
            }
        }
    }

    /// Why nothing can be read any more, within a frame or between two.
    fn broken(&mut self, error: &io::Error, within: bool) -> Stop {
        if error.kind() == ErrorKind::InvalidData {
            // Forged, damaged or replayed on its way: the peer itself does not send such bytes.
            return self.malformed(format!("TLS refuses its bytes: {error}"));
        }
        self.end_within(within)
    }

    fn end_within(&mut self, frame: bool) -> Stop {
        self.ended = Some(if frame { Ended::WithinFrame } else { Ended::BetweenFrames });
        Stop::Gone
    }

    /// Reads and forgets rows until a notice, the end, or nothing more has come.
    pub(super) fn find_notice(&mut self) -> Option<Failure> {
        let mut to_skip = match self.inbound {
            Inbound::Rows { len, filled } => len - filled,
            Inbound::Header | Inbound::Done => 0,
        };
        for _ in 0..NOTICE_READS_MAX {
            let skipped = to_skip.min(self.staged());
            self.begin += skipped;
            to_skip -= skipped;
            if to_skip == 0 {
                match self.take_header() {
                    Ok(Some(header)) => {
                        to_skip = header.len as usize;
                        continue;
                    }
                    Ok(None) => {}
                    Err(Stop::Told(failure)) => return Some(failure),
                    Err(Stop::Gone | Stop::Wrong(_)) => return None,
                }
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => {
                    if to_skip > 0 {
                        self.ended = Some(Ended::WithinFrame);
                    }
                    return None;
                }
            }
        }
        None
    }
}

/// Makes `rows` `len` bytes long; its contents are to be overwritten.
fn make_room(rows: &mut Vec<u8>, len: u64) -> Result<(), String> {
    let too_much = || format!("there is no memory for its {len} bytes");
    let len = usize::try_from(len).map_err(|_| too_much())?;
    if len > rows.len() {
        rows.try_reserve_exact(len - rows.len()).map_err(|_| too_much())?;
    }
    rows.resize(len, 0);
    Ok(())
}
