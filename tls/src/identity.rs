//! A process's certificate, key and authorities: files that may change while it runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::material::{Contents, Material};
use crate::metric_definitions as metric;
use crate::{Acceptor, Connector, Role, Service};

/// How often the files are read. They are small, and links and clocks of file systems cannot be trusted to show a change.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// PEM files of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates peers must show; none where peers show none.
    pub authorities: Option<PathBuf>,
}

/// What an identity is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The HTTP API.
    Http,
    /// Connections between the processes of a cluster, of which this one is so.
    Cluster(Role),
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} has more than {max} bytes, which no PEM file of certificates has", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// A file is no PEM file, or not of the right kind.
    #[error("{} is no PEM file of the expected kind: {}", .path.display(), .source)]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate in PEM form", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is damaged.
    #[error("the first certificate in {} cannot be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is for somebody else.
    #[error("the certificate in {} does not carry the DNS name {role}, which this process needs", .path.display())]
    Role {
        /// The file.
        path: PathBuf,
        /// The name.
        role: Role,
    },
    /// Nobody would accept the certificate any more.
    #[error("the certificate in {} expired at Unix time {not_after}; renew it", .path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// End of its validity, in Unix seconds.
        not_after: i64,
    },
    /// Key and certificate do not belong together.
    #[error(
        "the key in {} cannot be used for the certificate in {}: {}",
        .key.display(), .certificate.display(), .source
    )]
    Key {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// An authority cannot be one.
    #[error("a certificate in {} cannot be an authority's: {}", .path.display(), .source)]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// An identity that follows its files. Cheap to clone; the files are followed as long as a clone exists.
#[derive(Clone, Debug)]
pub struct Identity {
    current: watch::Receiver<Arc<Material>>,
    _following: Arc<AbortOnDropHandle<()>>,
}

/// Whether connections are protected, and by what.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// They are not: the network is trusted.
    #[default]
    Plain,
    /// TLS.
    Tls(Identity),
}

// === impl Usage ===

impl Usage {
    pub(crate) fn role(self) -> Option<Role> {
        match self {
            Self::Http => None,
            Self::Cluster(role) => Some(role),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Cluster(_) => "cluster",
        }
    }
}

// === impl Identity ===

impl Identity {
    /// Reads and checks `files`, and follows them from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The files cannot be used as they are.
    pub async fn open(files: Files, usage: Usage) -> Result<Self, Error> {
        let contents = Contents::read(&files).await?;
        let material = Material::check(&files, usage, &contents)?;
        metric::expiry(usage.label(), material.not_after);
        let (sender, current) = watch::channel(Arc::new(material));
        let following = tokio::spawn(follow(files, usage, sender));
        Ok(Self { current, _following: Arc::new(AbortOnDropHandle::new(following)) })
    }

    /// What the files held when they were last good.
    pub(crate) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.borrow())
    }

    /// Waits for the next change of the files that was taken over.
    #[cfg(test)]
    pub(crate) async fn changed(&mut self) {
        self.current.changed().await.unwrap();
    }
}

/// Takes over what the files hold whenever it changes and is good. What is not is said once, and what was good is kept.
async fn follow(files: Files, usage: Usage, sender: watch::Sender<Arc<Material>>) {
    let mut ticks = interval(FOLLOW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = None;
    loop {
        ticks.tick().await;
        let (digest, checked) = match Contents::read(&files).await {
            Ok(contents) => {
                let digest = contents.digest();
                if digest == sender.borrow().digest {
                    refused = None;
                    continue;
                }
                (Some(digest), Material::check(&files, usage, &contents))
            }
            Err(error) => (None, Err(error)),
        };
        match checked {
            Ok(material) => {
                let not_after = material.not_after;
                info!(usage = usage.label(), not_after, "new certificate taken over");
                metric::reloaded(usage.label(), metric::TAKEN_OVER);
                metric::expiry(usage.label(), not_after);
                refused = None;
                sender.send_replace(Arc::new(material));
            }
            Err(error) if refused != Some(digest) => {
                let not_after = sender.borrow().not_after;
                let error = chain(&error);
                warn!(
                    usage = usage.label(),
                    error, not_after, "changed TLS files are not usable; the old ones stay"
                );
                metric::reloaded(usage.label(), metric::REFUSED);
                refused = Some(digest);
            }
            Err(_) => {}
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

// === impl Security ===

impl Security {
    /// TLS with `files`, or none without them.
    ///
    /// # Errors
    /// The files cannot be used.
    pub async fn open(files: Option<&Files>, usage: Usage) -> Result<Self, Error> {
        match files {
            Some(files) => Ok(Self::Tls(Identity::open(files.clone(), usage).await?)),
            None => Ok(Self::Plain),
        }
    }

    /// Whether connections are protected.
    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Accepts connections of a service.
    #[must_use]
    pub fn acceptor(&self, service: Service) -> Acceptor {
        Acceptor::new(self.clone(), service)
    }

    /// Dials a service of processes that have a role.
    #[must_use]
    pub fn connector(&self, service: Service, role: Role) -> Connector {
        Connector::new(self.clone(), service, role)
    }
}
