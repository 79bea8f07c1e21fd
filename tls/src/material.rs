//! What the files of an identity hold: read, parsed and checked as a whole.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::identity::{Error, Files, Usage};
use crate::peer::Roles;
use crate::provider;

/// Largest PEM file. A chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files' contents, unchecked.
pub(crate) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

/// What TLS configurations are made of.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) key: Arc<CertifiedKey>,
    /// Whose certificates of peers are accepted.
    pub(crate) authorities: Option<Arc<RootCertStore>>,
    /// End of the certificate's validity, in Unix seconds.
    pub(crate) not_after: i64,
    /// SHA-256 of the files.
    pub(crate) digest: [u8; 32],
}

// === impl Contents ===

impl Contents {
    pub(crate) async fn read(files: &Files) -> Result<Self, Error> {
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
            authorities: match &files.authorities {
                Some(path) => Some(read(path).await?),
                None => None,
            },
        })
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let authorities = self.authorities.as_deref().unwrap_or_default();
        for part in [&self.certificate[..], &self.key, authorities] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = async {
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = read.await.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.to_owned(), max: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

// === impl Material ===

impl Material {
    /// Checks the contents of `files`.
    pub(crate) fn check(files: &Files, usage: Usage, contents: &Contents) -> Result<Self, Error> {
        let chain = certificates(&files.certificate, &contents.certificate)?;
        let first =
            chain.first().ok_or_else(|| Error::Empty { path: files.certificate.clone() })?;
        if let Some(role) = usage.role()
            && !Roles::of(first).contain(role)
        {
            return Err(Error::Role { path: files.certificate.clone(), role });
        }
        let not_after = not_after(first)
            .ok_or_else(|| Error::Unreadable { path: files.certificate.clone() })?;
        if not_after <= now() {
            return Err(Error::Expired { path: files.certificate.clone(), not_after });
        }
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|source| Error::Pem { path: files.key.clone(), source })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|source| Error::Key {
            key: files.key.clone(),
            certificate: files.certificate.clone(),
            source,
        })?;
        let authorities = match (&files.authorities, &contents.authorities) {
            (Some(path), Some(bytes)) => Some(Arc::new(roots(path, bytes)?)),
            (None, _) | (_, None) => None,
        };
        Ok(Self { key: Arc::new(key), authorities, not_after, digest: contents.digest() })
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { path: path.to_owned(), source })
}

fn roots(path: &Path, bytes: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, bytes)? {
        roots
            .add(certificate)
            .map_err(|source| Error::Authority { path: path.to_owned(), source })?;
    }
    if roots.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok(roots)
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Certificates are valid by the wall clock, and rustls reads the same.
fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
