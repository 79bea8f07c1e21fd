//! The lease as an object of Kubernetes, `coordination.k8s.io/v1`, as its own components keep theirs.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};

use super::LeaseOptions;
use super::candidate::{Record, Stored};
use super::lease::{LeaseStore, StoreError};
use crate::auth::clock::Clock;

/// Status of a write over a version that is not the present one, or of a second creation.
const CONFLICT: u16 = 409;

/// Why Kubernetes cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pod and no kubeconfig.
    #[error(
        "it is not known how to reach Kubernetes: this is no pod with a service account's token, and there is no kubeconfig"
    )]
    Config(#[source] kube::config::InferConfigError),
    /// The client cannot be made of what is known.
    #[error("cannot set up the client of Kubernetes")]
    Client(#[source] kube::Error),
}

/// A Lease. Its labels and whatever else it has stay as they are.
#[derive(Debug)]
pub(super) struct KubernetesLease {
    leases: Api<Lease>,
    name: String,
    clock: Clock,
}

// === impl KubernetesLease ===

impl KubernetesLease {
    /// Sets up the client; asks nothing yet. The service account's token is read again when it has changed.
    pub(super) async fn open(options: &LeaseOptions, clock: Clock) -> Result<Self, Error> {
        let config = Config::infer().await.map_err(Error::Config)?;
        let namespace =
            options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(Error::Client)?;
        let leases = Api::namespaced(client, &namespace);
        Ok(Self { leases, name: options.name.clone(), clock })
    }

    async fn get(&self) -> Result<Option<Stored>, StoreError> {
        self.leases.get_opt(&self.name).await.map_err(failed)?.map(stored).transpose()
    }

    async fn put(&self, record: &Record, over: Option<&Stored>) -> Result<Stored, StoreError> {
        let is_first = over.is_none_or(|over| over.record.holder != record.holder);
        let mut lease = Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(spec(record, is_first, self.clock.now())),
        };
        let written = match over {
            None => self.leases.create(&PostParams::default(), &lease).await,
            Some(over) => {
                // The server refuses a patch of another version.
                lease.metadata.resource_version = Some(over.version.clone());
                let patch = Patch::Merge(&lease);
                self.leases.patch(&self.name, &PatchParams::default(), &patch).await
            }
        };
        stored(written.map_err(failed)?)
    }
}

impl LeaseStore for KubernetesLease {
    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        self.get().boxed()
    }

    fn write<'a>(
        &'a self,
        record: &'a Record,
        over: Option<&'a Stored>,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.put(record, over).boxed()
    }
}

/// The fields of a record. The times are for people; nobody decides by them.
fn spec(record: &Record, is_first: bool, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        // A merge leaves alone what is absent, so nobody's name is an empty one.
        holder_identity: Some(record.holder.clone().unwrap_or_default()),
        lease_duration_seconds: Some(
            i32::try_from(record.duration.as_secs()).unwrap_or(i32::MAX).max(1),
        ),
        lease_transitions: Some(i32::try_from(record.transitions).unwrap_or(i32::MAX)),
        acquire_time: is_first.then_some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..LeaseSpec::default()
    }
}

fn stored(lease: Lease) -> Result<Stored, StoreError> {
    let version = lease
        .metadata
        .resource_version
        .ok_or_else(|| StoreError::Failed("the server sent a Lease without a version".into()))?;
    // One that nobody has held yet may be empty.
    let spec = lease.spec.unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    let record = Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds),
        transitions: u32::try_from(spec.lease_transitions.unwrap_or(0)).unwrap_or(0),
    };
    Ok(Stored { record, version })
}

fn failed(error: kube::Error) -> StoreError {
    if matches!(&error, kube::Error::Api(status) if status.code == CONFLICT) {
        return StoreError::Conflict;
    }
    StoreError::Failed(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_goes_through_an_object_and_back() {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        for holder in [Some("me".to_owned()), None] {
            let record = Record { holder, duration: Duration::from_secs(15), transitions: 3 };
            let spec = spec(&record, false, at);
            assert_eq!(spec.acquire_time, None);
            let metadata =
                ObjectMeta { resource_version: Some("7".to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            assert_eq!(stored(lease).unwrap(), Stored { record, version: "7".to_owned() });
        }
    }

    #[test]
    fn a_lease_that_was_only_made_is_nobodys() {
        let metadata = ObjectMeta { resource_version: Some("1".to_owned()), ..Default::default() };
        let record = stored(Lease { metadata, spec: None }).unwrap().record;
        assert_eq!(record, Record { holder: None, duration: Duration::ZERO, transitions: 0 });
    }
}
