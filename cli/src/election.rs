//! Settings of the election among several coordinators.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use switchyard_coordinator::election::{ElectionOptions, LeaseOptions, Timing};

use crate::config::Problems;

/// The Lease's name unless told otherwise.
const DEFAULT_LEASE: &str = "switchyard";
/// Who a coordinator is unless told otherwise.
const DEFAULT_IDENTITY: &str = "coordinator";

/// Arguments of `coordinator`.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Args {
    /// How several coordinators decide who leads; the others stand by. They share a PostgreSQL database and a file store [default: none].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election: Option<Mode>,
    /// Name of the Lease [default: switchyard].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_LEASE", value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_lease: Option<String>,
    /// Namespace of the Lease [default: the pod's].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_NAMESPACE", value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_namespace: Option<String>,
    /// What this coordinator is called in the Lease, such as its pod's name [default: coordinator].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_IDENTITY", value_name = "NAME")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_identity: Option<String>,
    /// Seconds after the leader's last sign of life until another leads [default: 15].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_LEASE_SECONDS", value_name = "SECONDS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_lease_seconds: Option<u32>,
    /// Seconds without a renewal after which the leader stops, and exits with status 75 [default: 10].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_RENEW_SECONDS", value_name = "SECONDS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_renew_seconds: Option<u32>,
    /// Seconds between two attempts to get or to renew the Lease [default: 2].
    #[arg(long, env = "SWITCHYARD_LEADER_ELECTION_RETRY_SECONDS", value_name = "SECONDS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader_election_retry_seconds: Option<u32>,
}

/// How a leader is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// There is one coordinator, and it leads.
    #[default]
    None,
    /// By a Lease in Kubernetes, which is found as a pod or by the kubeconfig.
    Kubernetes,
}

// === impl Args ===

impl Args {
    /// Checks the arguments.
    pub(crate) fn resolve(&self, problems: &mut Problems) -> ElectionOptions {
        let default = Timing::default();
        let seconds = |typed: Option<u32>, default: Duration| {
            typed.map_or(default, |seconds| Duration::from_secs(seconds.into()))
        };
        let timing = Timing::new(
            seconds(self.leader_election_lease_seconds, default.lease()),
            seconds(self.leader_election_renew_seconds, default.renew_deadline()),
            seconds(self.leader_election_retry_seconds, default.retry()),
        );
        let timing = timing.map_err(|error| format!("--leader-election-…-seconds: {error}"));
        let timing = problems.take(timing).unwrap_or_default();
        let name = |typed: &Option<String>, default: &str| {
            typed.clone().unwrap_or_else(|| default.to_owned())
        };
        match self.leader_election.unwrap_or_default() {
            Mode::None => ElectionOptions::None,
            Mode::Kubernetes => ElectionOptions::Kubernetes(LeaseOptions {
                name: name(&self.leader_election_lease, DEFAULT_LEASE),
                namespace: self.leader_election_namespace.clone(),
                identity: name(&self.leader_election_identity, DEFAULT_IDENTITY),
                timing,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &Args) -> Result<ElectionOptions, String> {
        let mut problems = Problems::default();
        let options = args.resolve(&mut problems);
        problems.finish().map(|()| options).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn nothing_is_elected_unless_asked() {
        assert!(!resolve(&Args::default()).unwrap().has_others());
    }

    #[test]
    fn the_lease_has_the_names_and_times_that_were_given() {
        let options = resolve(&Args {
            leader_election: Some(Mode::Kubernetes),
            leader_election_identity: Some("pod-1".to_owned()),
            leader_election_lease_seconds: Some(6),
            leader_election_renew_seconds: Some(4),
            ..Args::default()
        });
        let ElectionOptions::Kubernetes(lease) = options.unwrap() else { panic!() };
        assert_eq!((lease.name.as_str(), lease.identity.as_str()), (DEFAULT_LEASE, "pod-1"));
        assert_eq!((lease.namespace, lease.timing.lease().as_secs()), (None, 6));
        let error = resolve(&Args { leader_election_lease_seconds: Some(5), ..Args::default() });
        assert!(error.unwrap_err().contains("a lease of 5 s, renewed within 10 s"));
    }
}
