//! Who is at the other end of a connection.

use std::fmt;

use rustls::pki_types::{CertificateDer, ServerName};
use tonic::{Request, Status};
use webpki::EndEntityCert;

/// What a process of the cluster is. Its certificate carries the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Drives workers.
    Coordinator,
    /// Registers with a coordinator and exchanges activations with workers.
    Worker,
}

/// Who is at the other end, as far as the connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TLS is off: everybody who reaches the port is trusted.
    Unchecked,
    /// It showed no certificate.
    Anonymous,
    /// Its certificate was checked.
    Certified(Roles),
}

/// The roles that a certificate carries. One for tests may carry both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    coordinator: bool,
    worker: bool,
}

/// Why a peer may not do what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It showed no certificate.
    #[error(
        "only a {0} may do this: connect with a certificate of the cluster that carries this name"
    )]
    NoCertificate(Role),
    /// Its certificate carries another name.
    #[error("only a {0} may do this, and the certificate shown does not carry this name")]
    OtherRole(Role),
}

// === impl Role ===

impl Role {
    /// The DNS name that a certificate of this role carries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "switchyard-coordinator",
            Self::Worker => "switchyard-worker",
        }
    }

    pub(crate) fn server_name(self) -> ServerName<'static> {
        // Both names are valid ones; the tests connect by them.
        ServerName::try_from(self.name()).unwrap_or_else(|_| unreachable!("a role's name"))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Roles ===

impl Roles {
    /// Those of an end entity's certificate; none if it cannot be read.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Self::default() };
        let carries =
            |role: Role| certificate.verify_is_valid_for_subject_name(&role.server_name()).is_ok();
        Self { coordinator: carries(Role::Coordinator), worker: carries(Role::Worker) }
    }

    pub(crate) fn contain(self, role: Role) -> bool {
        match role {
            Role::Coordinator => self.coordinator,
            Role::Worker => self.worker,
        }
    }
}

// === impl Peer ===

impl Peer {
    /// Whether the peer may do what only `role` may.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check(self, role: Role) -> Result<(), Refused> {
        match self {
            Self::Unchecked => Ok(()),
            Self::Anonymous => Err(Refused::NoCertificate(role)),
            Self::Certified(roles) if roles.contain(role) => Ok(()),
            Self::Certified(_) => Err(Refused::OtherRole(role)),
        }
    }
}

/// An interceptor that lets calls pass that come from `role`. A listener that does not say who is at the other end lets
/// nobody pass.
pub fn only(role: Role) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |request| match request.extensions().get::<Peer>() {
        Some(peer) => match peer.check(role) {
            Ok(()) => Ok(request),
            Err(refused @ Refused::NoCertificate(_)) => {
                Err(Status::unauthenticated(refused.to_string()))
            }
            Err(refused @ Refused::OtherRole(_)) => {
                Err(Status::permission_denied(refused.to_string()))
            }
        },
        None => Err(Status::internal("the listener does not know who is at the other end")),
    }
}
