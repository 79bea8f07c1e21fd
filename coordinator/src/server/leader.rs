//! What a leader starts that a standby has not.

use std::sync::Arc;

use switchyard_proto::FILE_DESCRIPTOR_SET;
use switchyard_proto::cluster::cluster_server::ClusterServer;
use switchyard_proto::inference::inference_server::InferenceServer;
use switchyard_tls::{Role, peer};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

use super::port::Port;
use super::{Error, Tasks, serve};
use crate::{cluster, grpc, http};

/// What only a leader does, before it is started.
pub(super) struct Leader {
    pub(super) grpc: Port,
    pub(super) cluster: cluster::Service,
    pub(super) context: http::Context,
    /// Says that the cluster has ended; also when it never began.
    pub(super) done: DropGuard,
}

// === impl Leader ===

impl Leader {
    /// Opens the gRPC port and starts what only a leader does. `done` is cancelled when the cluster has ended.
    pub(super) fn spawn(
        self,
        tasks: &mut Tasks,
        cluster_done: &CancellationToken,
    ) -> Result<(), Error> {
        let Self { grpc, cluster, context, done } = self;
        let draining = context.draining.clone();
        let (health_reporter, health_server) = tonic_health::server::health_reporter();
        let inference = grpc::Inference::new(Arc::clone(&context.chat), context.accounts.clone());
        let inference = InferenceServer::new(inference)
            .max_decoding_message_size(context.limits.body_bytes_max);
        let registrar = ClusterServer::new(cluster.registrar());
        let routes = Routes::new(InterceptedService::new(registrar, peer::only(Role::Worker)))
            .add_service(inference)
            .add_service(health_server)
            .add_service(reflection().build_v1().map_err(Error::Reflection)?)
            .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?);
        // Workers' leases are gRPC streams, so this server outlives the cluster.
        serve(tasks, grpc.into_listener()?, routes.prepare().into_axum_router(), cluster_done);

        let stop = draining.clone();
        tasks.spawn(async move {
            let _done = done;
            Ok(cluster.run(stop).await?)
        });
        let runner = http::batches::runner(&context);
        let stop = draining.clone();
        tasks.spawn(async move {
            runner.run(stop).await;
            Ok(())
        });
        tasks.spawn(async move {
            grpc::health::follow(context.chat, health_reporter, draining).await;
            Ok(())
        });
        Ok(())
    }
}

fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
