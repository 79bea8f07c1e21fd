//! A port that is taken before anybody may connect to it.

use std::io;
use std::net::SocketAddr;

use switchyard_tls::{Acceptor, Security};
use tokio::net::TcpSocket;

use super::{Api, Listener};
use crate::options::ConnectionLimits;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A port that nobody else can take, and that refuses connections until it is opened.
#[derive(Debug)]
pub(crate) struct Reserved {
    api: Api,
    socket: TcpSocket,
    acceptor: Acceptor,
    limits: ConnectionLimits,
}

// === impl Reserved ===

impl Reserved {
    /// Takes a port; 0 takes a free one. Says which.
    ///
    /// # Errors
    /// The system's, for instance because the port is in use.
    pub(crate) fn take(
        api: Api,
        address: SocketAddr,
        security: &Security,
        limits: ConnectionLimits,
    ) -> io::Result<(Self, SocketAddr)> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As every listener here: old connections must not keep the port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let bound = socket.local_addr()?;
        Ok((Self { api, socket, acceptor: api.acceptor(security), limits }, bound))
    }

    /// Begins to accept connections.
    ///
    /// # Errors
    /// The system's, for instance because another process listens at the port.
    pub(crate) fn open(self) -> io::Result<Listener> {
        let Self { api, socket, acceptor, limits } = self;
        Ok(Listener { api, socket: socket.listen(BACKLOG)?, acceptor, limits })
    }
}
