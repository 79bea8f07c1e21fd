//! The server's ports.

use std::net::SocketAddr;

use switchyard_tls::Security;

use super::Error;
use crate::listener::{Api, Listener, Reserved};
use crate::options::ConnectionLimits;

/// A port that is ours.
#[derive(Debug)]
pub(super) enum Port {
    /// Connections are accepted.
    Open(Listener),
    /// Connections are refused until it is opened.
    Reserved {
        /// The port.
        reserved: Reserved,
        /// Whose it is.
        api: Api,
        /// Its address.
        address: SocketAddr,
    },
}

// === impl Port ===

impl Port {
    /// A port that is open from the start, and its address.
    pub(super) async fn open(
        api: Api,
        address: SocketAddr,
        security: &Security,
        limits: &ConnectionLimits,
    ) -> Result<(Self, SocketAddr), Error> {
        let (listener, bound) = listen(api, address, security, limits).await?;
        Ok((Self::Open(listener), bound))
    }

    /// A port to be opened later, and its address.
    pub(super) fn reserve(
        api: Api,
        address: SocketAddr,
        security: &Security,
        limits: &ConnectionLimits,
    ) -> Result<(Self, SocketAddr), Error> {
        let reserved = Reserved::take(api, address, security, limits.clone());
        let (reserved, address) = reserved.map_err(|source| bind_error(api, address, source))?;
        Ok((Self::Reserved { reserved, api, address }, address))
    }

    /// Begins to accept connections, unless it does.
    pub(super) fn into_listener(self) -> Result<Listener, Error> {
        match self {
            Self::Open(listener) => Ok(listener),
            Self::Reserved { reserved, api, address } => {
                reserved.open().map_err(|source| bind_error(api, address, source))
            }
        }
    }
}

pub(super) async fn listen(
    api: Api,
    address: SocketAddr,
    security: &Security,
    limits: &ConnectionLimits,
) -> Result<(Listener, SocketAddr), Error> {
    let listener = Listener::bind(api, address, security, limits.clone()).await;
    listener.map_err(|source| bind_error(api, address, source))
}

fn bind_error(api: Api, address: SocketAddr, source: std::io::Error) -> Error {
    Error::Bind { api: api.name(), address, source }
}
