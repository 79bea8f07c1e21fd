//! Connections that go out.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use tonic::transport::Uri;

use crate::made::Made;
use crate::material::Material;
use crate::{HANDSHAKE_TIMEOUT, NEWEST_VERSION, Role, Security, Service, Stream, provider};

/// Dials processes of the cluster, with TLS or without. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    security: Security,
    service: Service,
    /// The name that the other side must have, whatever its address.
    role: Role,
    made: Arc<Made<ClientConfig>>,
}

// === impl Connector ===

impl Connector {
    pub(crate) fn new(security: Security, service: Service, role: Role) -> Self {
        Self { security, service, role, made: Arc::default() }
    }

    /// Connects to `host:port`. With TLS the other side must have the role that was asked for.
    ///
    /// # Errors
    /// It cannot be reached, or is somebody else. A refusal of *this* side's certificate may show only when something is
    /// read.
    pub async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Security::Tls(identity) = &self.security else { return Ok(Stream::plain(stream)) };
        let config = self.made.of(identity.current(), |material| config(self.service, material));
        let config = config.map_err(io::Error::other)?;
        let shaking = TlsConnector::from(config).connect(self.role.server_name(), stream);
        match timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(shaken) => Ok(Stream::tls(TlsStream::Client(shaken?))),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// What a gRPC endpoint dials with. The endpoint's URL begins with `http://` in any case: what is above does not see
    /// TLS.
    #[must_use]
    pub fn service(
        &self,
    ) -> impl tower::Service<Uri, Response = TokioIo<Stream>, Error = io::Error, Future: Send>
    + Send
    + Clone
    + 'static {
        let connector = self.clone();
        tower::service_fn(move |uri: Uri| {
            let connector = connector.clone();
            async move {
                let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
                    let what = format!("{uri} names no host and port");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
                };
                connector.connect(&format!("{host}:{port}")).await.map(TokioIo::new)
            }
        })
    }
}

fn config(service: Service, material: &Material) -> Result<ClientConfig, rustls::Error> {
    let Some(roots) = &material.authorities else {
        return Err(rustls::Error::General("there are no authorities".to_owned()));
    };
    // Whoever is dialled is one of our own processes.
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(NEWEST_VERSION)?
        .with_root_certificates(Arc::clone(roots))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.key))));
    config.alpn_protocols = service.protocols();
    config.resumption = Resumption::disabled();
    Ok(config)
}
