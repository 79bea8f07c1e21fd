//! Authorities and certificates for tests.
#![expect(clippy::unwrap_used, reason = "only tests use it, and they are to fail here")]

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Files, Role, provider};

/// An authority, and the files of all certificates that it has issued.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// Until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For as long as any test lasts.
    Now,
    /// It is over.
    Past,
}

// === impl Authority ===

impl Authority {
    /// A new one, unlike any other.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// File with its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Files of a process with a role, in a folder of their own.
    #[must_use]
    pub fn member(&self, role: Role) -> Files {
        self.issue(role.name(), &[role.name(), "localhost", "127.0.0.1"], Validity::Now)
    }

    /// Connects as a client that trusts this authority, shows no certificate, and expects `name`.
    ///
    /// # Errors
    /// Those of the connection and of the handshake.
    pub async fn dial(
        &self,
        address: SocketAddr,
        name: &'static str,
        protocol: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Files named after `folder`, of a certificate for `names`. They replace those of an earlier certificate.
    #[must_use]
    pub fn issue(&self, folder: &str, names: &[&str], validity: Validity) -> Files {
        let dir = self.dir.path().join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        self.issue_to(&dir, names, validity)
    }

    /// As [`Self::issue`], into a given folder.
    #[must_use]
    pub fn issue_to(&self, dir: &Path, names: &[&str], validity: Validity) -> Files {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if validity == Validity::Past {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            authorities: Some(dir.join("ca.crt")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(dir.join("ca.crt"), self.issuer.pem()).unwrap();
        files
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}
