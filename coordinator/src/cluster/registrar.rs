//! The gRPC service that workers dial.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use switchyard_moe::ids::ModelId;
use switchyard_proto::cluster::cluster_server::Cluster;
use switchyard_proto::cluster::{RegisterEvent, RegisterRequest};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::membership::{self, Membership};

/// Lets workers into the groups of their models. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registrar(Arc<BTreeMap<ModelId, Membership>>);

// === impl Registrar ===

impl Registrar {
    pub(super) fn new(memberships: BTreeMap<ModelId, Membership>) -> Self {
        Self(Arc::new(memberships))
    }
}

#[tonic::async_trait]
impl Cluster for Registrar {
    type RegisterStream = BoxStream<'static, Result<RegisterEvent, Status>>;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let info = request.into_inner();
        let model = ModelId::new(info.model.clone());
        let Some(membership) = self.0.get(&model) else {
            let served: Vec<&str> = self.0.keys().map(ModelId::as_str).collect();
            return Err(Status::not_found(format!(
                "worker {} wants to serve model {model}, but this coordinator serves {}",
                info.control_address,
                served.join(", ")
            )));
        };
        match membership.join(info) {
            Ok(lease) => Ok(Response::new(lease.boxed())),
            Err(error) => {
                warn!(%model, %error, "worker refused");
                Err(status(&error))
            }
        }
    }
}

fn status(error: &membership::Error) -> Status {
    match error {
        membership::Error::Stopping => Status::unavailable(error.to_string()),
        membership::Error::Version { .. }
        | membership::Error::Numerics { .. }
        | membership::Error::Checkpoint { .. }
        | membership::Error::Device { .. }
        | membership::Error::WorldSize { .. }
        | membership::Error::NoWorldSize { .. } => Status::failed_precondition(error.to_string()),
    }
}
