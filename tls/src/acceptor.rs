//! Connections that come in.

use std::io;
use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::made::Made;
use crate::material::Material;
use crate::metric_definitions as metric;
use crate::{ClientCertificate, HANDSHAKE_TIMEOUT, Security, Service, Stream, provider};

/// Accepts connections, with TLS or without. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acceptor {
    security: Security,
    service: Service,
    made: Arc<Made<ServerConfig>>,
}

// === impl Acceptor ===

impl Acceptor {
    pub(crate) fn new(security: Security, service: Service) -> Self {
        Self { security, service, made: Arc::default() }
    }

    /// Makes a connection of what came to the port: shakes hands, if TLS is on, in bounded time.
    ///
    /// # Errors
    /// The other side speaks no TLS, shows no certificate where one is needed or one that is not good, or is too slow.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        // Small messages must not wait for each other. Without the option they only come later.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let Security::Tls(identity) = &self.security else { return Ok(Stream::plain(stream)) };
        let config = self.made.of(identity.current(), |material| config(self.service, material));
        let config = config.map_err(io::Error::other)?;
        let shaken = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match shaken {
            Ok(stream) => Ok(Stream::tls(TlsStream::Server(stream))),
            Err(error) => {
                metric::handshake_failed(self.service, reason(&error));
                Err(error)
            }
        }
    }
}

fn config(service: Service, material: &Material) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(service.versions())?;
    let verifier =
        |roots: &Arc<_>| WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    let builder = match (service.client_certificate(), &material.authorities) {
        (ClientCertificate::Ignored, _) => builder.with_no_client_auth(),
        (ClientCertificate::Optional, Some(roots)) => {
            let verifier = verifier(roots).allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(other)?)
        }
        (ClientCertificate::Required, Some(roots)) => {
            builder.with_client_cert_verifier(verifier(roots).build().map_err(other)?)
        }
        (ClientCertificate::Optional | ClientCertificate::Required, None) => {
            return Err(rustls::Error::General("there are no authorities".to_owned()));
        }
    };
    let key = SingleCertAndKey::from(Arc::clone(&material.key));
    let mut config = builder.with_cert_resolver(Arc::new(key));
    config.alpn_protocols = service.protocols();
    if service.client_certificate() != ClientCertificate::Ignored {
        // Between processes connections last long; every handshake shows its certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn other(error: rustls::server::VerifierBuilderError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Why a handshake failed, as a label. The whole reason is for the log: strangers must not make series.
fn reason(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::TimedOut {
        return "timeout";
    }
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        None => "connection",
        Some(rustls::Error::NoCertificatesPresented) => "no_certificate",
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "expired",
        Some(rustls::Error::InvalidCertificate(_)) => "bad_certificate",
        Some(rustls::Error::InvalidMessage(_)) => "no_tls",
        Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate,
        )) => "refused_by_peer",
        Some(_) => "other",
    }
}
