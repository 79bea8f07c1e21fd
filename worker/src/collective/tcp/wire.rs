//! Bytes between two ranks: a socket, with TLS over it or not. Nothing here waits.
//!
//! The thread that exchanges drives TLS itself, record by record, as it does the sockets. What TLS has sealed and the
//! socket has not taken yet, or the other way round, is kept here.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;

use rustls::Connection;

/// Sealed bytes read from a socket at once: several records.
const SEALED_BYTES: usize = 64 << 10;
/// Sealed bytes that may wait for the socket.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// A connection to a peer.
pub(super) struct Wire {
    socket: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    state: Connection,
    /// Bytes read but not yet opened: `sealed[begin..end]`.
    sealed: Box<[u8]>,
    begin: usize,
    end: usize,
    /// Why nothing more is opened.
    failed: Option<rustls::Error>,
}

// === impl Wire ===

impl Wire {
    /// Over a socket that does not block. `tls` has shaken hands.
    pub(super) fn new(socket: TcpStream, tls: Option<Connection>) -> Self {
        let tls = tls.map(|mut state| {
            state.set_buffer_limit(Some(UNSENT_BYTES_MAX));
            let sealed = vec![0; SEALED_BYTES].into_boxed_slice();
            Box::new(Tls { state, sealed, begin: 0, end: 0, failed: None })
        });
        Self { socket, tls }
    }

    /// What to poll.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether the socket has yet to take bytes that were written.
    pub(super) fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.state.wants_write())
    }

    /// Has the socket take what waits for it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.flush(&self.socket),
            None => Ok(()),
        }
    }

    /// Writes what is taken at once, and says how much.
    pub(super) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.socket).write_vectored(parts) };
        tls.flush(&self.socket)?;
        let num_bytes = tls.state.writer().write_vectored(parts)?;
        match tls.flush(&self.socket) {
            Err(error) if !is_for_later(&error) => Err(error),
            Ok(()) | Err(_) => Ok(num_bytes),
        }
    }

    /// Reads what is there: `None` if nothing is, an error at the end. What was not sealed by the peer, in this order and
    /// once, is [`ErrorKind::InvalidData`].
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let read = match &mut self.tls {
                Some(tls) => tls.read(&self.socket, into),
                None => (&self.socket).read(into),
            };
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(num_bytes) => return Ok(Some(num_bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_tls = self.tls.is_some();
        f.debug_struct("Wire").field("socket", &self.socket).field("tls", &has_tls).finish()
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

// === impl Tls ===

impl Tls {
    fn flush(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        while self.state.wants_write() {
            if self.state.write_tls(&mut socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// As a socket reads: 0 at the end.
    fn read(&mut self, mut socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                opened => return opened,
            }
            if let Some(error) = &self.failed {
                return Err(io::Error::new(ErrorKind::InvalidData, error.clone()));
            }
            if self.begin == self.end {
                (self.begin, self.end) = (0, 0);
                self.end = socket.read(&mut self.sealed)?;
                if self.end == 0 {
                    return Ok(0);
                }
            }
            let mut sealed = &self.sealed[self.begin..self.end];
            self.begin += self.state.read_tls(&mut sealed)?;
            self.failed = self.state.process_new_packets().err();
        }
    }
}
