//! The lease that the coordinator holds on this worker: registered for as long as the stream is open.

use std::time::Duration;

use switchyard_proto::cluster::cluster_client::ClusterClient;
use switchyard_proto::cluster::register_event::Event;
use switchyard_proto::cluster::{Device, RegisterEvent, RegisterRequest};
use switchyard_tls::{Connector, Role, Security, Service};
use tokio::time::sleep;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use tracing::{info, warn};

use crate::metric_definitions as metric;
use crate::options::Options;
use crate::server::VERSION;

pub(crate) mod device;
#[cfg(test)]
mod tests;

/// Pauses between attempts to register: the first, doubled each time up to the last.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest time to reach the coordinator and be answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked for a sign of life this often, and given up when it gives none for as long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The coordinator's word that this worker is not wanted: trying again is useless.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refused the registration: another version, checkpoint, numerics or group.
    #[error("the coordinator at {coordinator} refused this worker: {reason}")]
    Refused {
        /// Its address.
        coordinator: Uri,
        /// Its words.
        reason: String,
    },
    /// It ended a registration that it had granted.
    #[error("the coordinator at {coordinator} put this worker out: {reason}")]
    Expelled {
        /// Its address.
        coordinator: Uri,
        /// Its words.
        reason: String,
    },
}

/// What this worker tells of itself.
#[derive(Clone, Debug)]
pub struct Registration {
    coordinator: Uri,
    connector: Connector,
    request: RegisterRequest,
}

/// How a lease ended.
enum End {
    /// The coordinator asks the worker to exit.
    Drain,
    /// The connection broke, or could not be made: to be tried again.
    Broken(String),
}

// === impl Registration ===

impl Registration {
    /// Of a worker on `device` whose servers are reached at the two addresses (`host:port`), control and data plane. With
    /// TLS, whoever answers must be a coordinator.
    #[must_use]
    pub fn new(
        options: &Options,
        security: &Security,
        device: Device,
        checkpoint_fingerprint: String,
        [control_address, data_address]: [String; 2],
    ) -> Self {
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            model: options.model.to_string(),
            checkpoint_fingerprint,
            numerics: options.numerics.to_string(),
            control_address,
            data_address,
            device: Some(device),
            pid: std::process::id(),
            world_size: options.world_size.get() as u32,
        };
        let connector = security.connector(Service::Clients, Role::Coordinator);
        Self { coordinator: options.coordinator.clone(), connector, request }
    }

    /// `host:port` of the worker's gRPC server.
    #[must_use]
    pub fn control_address(&self) -> &str {
        &self.request.control_address
    }

    /// `host:port` of the worker's data plane.
    #[must_use]
    pub fn data_address(&self) -> &str {
        &self.request.data_address
    }

    /// Registers, again and again when the coordinator goes away, until it asks the worker to exit.
    ///
    /// # Errors
    /// When the coordinator refuses the worker or puts it out.
    pub async fn hold(self) -> Result<(), Error> {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let mut was_registered = false;
            let end = self.hold_once(&mut was_registered).await;
            metric::registered(false);
            match end? {
                End::Drain => return Ok(()),
                End::Broken(reason) => {
                    if was_registered {
                        pause = RETRY_PAUSE_MIN;
                    }
                    let coordinator = &self.coordinator;
                    warn!(%coordinator, reason, ?pause, "not registered, trying again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn hold_once(&self, was_registered: &mut bool) -> Result<End, Error> {
        let mut events = match self.register().await {
            Ok(events) => events,
            Err(status) if is_final(status.code()) => {
                let coordinator = self.coordinator.clone();
                return Err(Error::Refused { coordinator, reason: status.message().to_owned() });
            }
            Err(status) => return Ok(End::Broken(crate::chain(&status))),
        };
        loop {
            match events.message().await {
                Ok(Some(RegisterEvent { event: Some(Event::Registered(registered)) })) => {
                    info!(worker = registered.worker_id, "registered");
                    metric::registered(true);
                    *was_registered = true;
                }
                Ok(Some(RegisterEvent { event: Some(Event::Drain(drain)) })) => {
                    info!(reason = drain.reason, "the coordinator asks this worker to exit");
                    return Ok(End::Drain);
                }
                // An event of a later protocol.
                Ok(Some(RegisterEvent { event: None })) => {}
                Ok(None) => return Ok(End::Broken("the coordinator closed the lease".to_owned())),
                Err(status) if is_final(status.code()) => {
                    let coordinator = self.coordinator.clone();
                    let reason = status.message().to_owned();
                    return Err(Error::Expelled { coordinator, reason });
                }
                Err(status) => return Ok(End::Broken(crate::chain(&status))),
            }
        }
    }

    async fn register(&self) -> Result<Streaming<RegisterEvent>, Status> {
        let channel = Endpoint::from(self.coordinator.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(self.connector.service())
            .await
            .map_err(|error| Status::unavailable(crate::chain(&error)))?;
        let mut client = ClusterClient::new(channel);
        let answer = tokio::time::timeout(CONNECT_TIMEOUT, client.register(self.request.clone()));
        match answer.await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::unavailable(format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }
}

/// Whether trying again is useless.
fn is_final(code: Code) -> bool {
    match code {
        Code::FailedPrecondition
        | Code::NotFound
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}
