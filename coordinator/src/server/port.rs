//! The server's ports.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::Error;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A port that is ours.
#[derive(Debug)]
pub(super) enum Port {
    /// Connections are accepted.
    Open(TcpListener),
    /// Connections are refused until it is opened.
    Taken {
        /// Whose port it is.
        api: &'static str,
        /// Bound, and not listened on.
        socket: TcpSocket,
        /// Its address.
        address: SocketAddr,
    },
}

// === impl Port ===

impl Port {
    /// A port that is open from the start, and its address.
    pub(super) async fn listen(
        api: &'static str,
        address: SocketAddr,
    ) -> Result<(Self, SocketAddr), Error> {
        let (listener, bound) = listen(api, address).await?;
        Ok((Self::Open(listener), bound))
    }

    /// A port to be opened later, and its address.
    pub(super) fn take(
        api: &'static str,
        address: SocketAddr,
    ) -> Result<(Self, SocketAddr), Error> {
        let take = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // As every listener here: old connections must not keep the port.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let bound = socket.local_addr()?;
            Ok((Self::Taken { api, socket, address: bound }, bound))
        };
        take().map_err(|source| Error::Bind { api, address, source })
    }

    /// Begins to accept connections, unless it does.
    pub(super) fn open(self) -> Result<TcpListener, Error> {
        match self {
            Self::Open(listener) => Ok(listener),
            Self::Taken { api, socket, address } => {
                socket.listen(BACKLOG).map_err(|source| Error::Bind { api, address, source })
            }
        }
    }
}

pub(super) async fn listen(
    api: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind.await.map_err(|source| Error::Bind { api, address, source })
}
