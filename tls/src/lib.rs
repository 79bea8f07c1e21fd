//! TLS: who a process is, whom it lets in, and whom it dials. No other crate makes a TLS configuration.
//!
//! - [`identity`]: a certificate, its key and the authorities, read from files and read again when they change.
//! - [`acceptor`]: connections that come in, with TLS or without.
//! - [`connector`]: connections that go out.
//! - [`stream`]: either, once it is made.
//! - [`peer`]: who is at the other end, and what it may do.
//! - [`incoming`]: accepted connections for a gRPC server.
//! - [`metric_definitions`]: names of this crate's metrics.
//!
//! Certificates of a cluster carry a role as a DNS name, `switchyard-coordinator` or `switchyard-worker`. The side that
//! dials checks the role, not the address it dialled: addresses come and go, and are told by the other side.
//! This crate knows nothing of keys of clients, of HTTP or of what is said over a connection.
#![forbid(unsafe_code)]

pub mod identity;
mod material;
mod made;
pub mod acceptor;
pub mod connector;
pub mod stream;
pub mod peer;
pub mod incoming;
pub mod metric_definitions;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use acceptor::Acceptor;
pub use connector::Connector;
pub use identity::{Error, Files, Identity, Security, Usage};
pub use peer::{Peer, Role};
pub use stream::Stream;

use std::sync::Arc;
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;

/// Longest time of a handshake, from the connection to its last message.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// All that our own processes speak.
static NEWEST_VERSION: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What a listener is for: who may connect, and which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The HTTP API. Anybody may connect; requests carry keys.
    Http,
    /// The coordinator's gRPC port. Clients come without a certificate, workers with one.
    Clients,
    /// A worker's gRPC port. Without a certificate of the cluster nobody gets past the handshake.
    Control,
    /// The exchange of activations between workers. As [`Self::Control`].
    Data,
}

/// Whether a listener asks for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientCertificate {
    Ignored,
    Optional,
    Required,
}

// === impl Service ===

impl Service {
    fn client_certificate(self) -> ClientCertificate {
        match self {
            Self::Http => ClientCertificate::Ignored,
            Self::Clients => ClientCertificate::Optional,
            Self::Control | Self::Data => ClientCertificate::Required,
        }
    }

    /// Application protocols in the order of preference. One that no listener of another kind accepts keeps a connection
    /// from being led to the wrong port.
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Clients | Self::Control => vec![b"h2".to_vec()],
            Self::Data => vec![b"switchyard-data/1".to_vec()],
        }
    }

    /// Clients may be old, our own processes are not.
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Http | Self::Clients => rustls::ALL_VERSIONS,
            Self::Control | Self::Data => NEWEST_VERSION,
        }
    }
}

/// The one implementation of cryptography that is linked.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
