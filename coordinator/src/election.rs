//! Which of several coordinators leads. A group of workers has one scheduler; the others stand by to take over.
//!
//! - `candidate`: what a candidate makes of what it sees of the lease. Pure.
//! - `lease`: the loop around it.
//! - `kubernetes`: the lease as an object of Kubernetes.
//!
//! Whoever leads holds a lease and renews it. One that cannot renew it stops by itself before anybody else may take it, so
//! there are never two at once, whatever the network does and however the clocks differ.

mod candidate;
mod lease;
mod kubernetes;

use std::fmt;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::clock::Clock;
pub use candidate::{Timing, TimingError};
pub use kubernetes::Error;
use lease::LeaseElection;

#[cfg(test)]
mod tests;

/// How the leader is found.
#[derive(Clone, Debug, Default)]
pub enum ElectionOptions {
    /// There is one coordinator, and it leads.
    #[default]
    None,
    /// A Lease in Kubernetes. The API server and the namespace come from the pod, or else from the user's kubeconfig.
    Kubernetes(LeaseOptions),
}

/// A Lease in Kubernetes, and who wants it.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// The Lease's name.
    pub name: String,
    /// Its namespace. `None`: the pod's own.
    pub namespace: Option<String>,
    /// Who this is, as the others shall see it; what tells two starts of one program apart is added.
    pub identity: String,
    /// How long a lease lasts, and how often it is renewed.
    pub timing: Timing,
}

/// Where a coordinator stands in the election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Another leads, or nobody yet.
    StandsBy {
        /// Who leads, as far as is known.
        leader: Option<String>,
    },
    /// This one does.
    Leads,
    /// This one did. It is over for good: the process ends.
    Lost {
        /// What happened.
        reason: String,
    },
}

/// Decides whether this coordinator leads.
pub trait Election: fmt::Debug + Send {
    /// Tells how this coordinator stands, until it has led and lost, or `stop` is cancelled; then another may lead at once.
    fn run(
        self: Box<Self>,
        standing: watch::Sender<Standing>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>;
}

/// An election without others: this one leads from the start.
#[derive(Clone, Copy, Debug)]
pub struct Unopposed;

/// The election that the options ask for.
///
/// # Errors
/// Kubernetes is asked for, and it is not known how to reach it.
pub async fn open(options: &ElectionOptions) -> Result<Box<dyn Election>, Error> {
    match options {
        ElectionOptions::None => Ok(Box::new(Unopposed)),
        ElectionOptions::Kubernetes(options) => {
            let store = kubernetes::KubernetesLease::open(options, Clock::system()).await?;
            Ok(Box::new(LeaseElection::new(&options.identity, options.timing, store)))
        }
    }
}

// === impl ElectionOptions ===

impl ElectionOptions {
    /// Whether there may be others, who take over when this one goes.
    #[must_use]
    pub fn has_others(&self) -> bool {
        match self {
            Self::None => false,
            Self::Kubernetes(_) => true,
        }
    }
}

// === impl Standing ===

impl Standing {
    /// Whether this coordinator may serve.
    #[must_use]
    pub fn leads(&self) -> bool {
        match self {
            Self::Leads => true,
            Self::StandsBy { .. } | Self::Lost { .. } => false,
        }
    }

    /// Who leads instead, as far as is known.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        match self {
            Self::StandsBy { leader } => leader.as_deref(),
            Self::Leads | Self::Lost { .. } => None,
        }
    }
}

// === impl Unopposed ===

impl Election for Unopposed {
    fn run(
        self: Box<Self>,
        standing: watch::Sender<Standing>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        standing.send_replace(Standing::Leads);
        Box::pin(async move {
            stop.cancelled().await;
            // Whoever watches takes its end for a loss.
            drop(standing);
        })
    }
}
