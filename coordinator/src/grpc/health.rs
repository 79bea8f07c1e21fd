//! `grpc.health.v1`: the client API serves when `/health/ready` says ready.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use switchyard_proto::inference::inference_server::SERVICE_NAME;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::chat::{Chat, Served};

/// Shortest time between two looks at the groups: their status changes with every token.
const SETTLE: Duration = Duration::from_millis(100);

/// Keeps the reporter up to date until `draining`, and then says that nothing is served. Never ends before.
pub async fn follow(chat: Arc<Chat>, reporter: HealthReporter, draining: CancellationToken) {
    let streams = chat.models().map(|served| WatchStream::new(served.engine.watch()));
    let mut changes = futures::stream::select_all(streams);
    loop {
        let serves = !draining.is_cancelled() && chat.models().any(Served::is_routable);
        report(&reporter, serves).await;
        if draining.is_cancelled() {
            return;
        }
        tokio::select! {
            () = draining.cancelled() => {}
            change = changes.next() => {
                if change.is_none() {
                    // All engines are gone; only draining is left to wait for.
                    draining.cancelled().await;
                } else {
                    tokio::time::sleep(SETTLE).await;
                }
            }
        }
    }
}

async fn report(reporter: &HealthReporter, serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}
