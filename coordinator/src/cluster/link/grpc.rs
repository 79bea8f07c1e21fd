//! Workers over gRPC.

use std::error::Error as _;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use switchyard_proto::worker::worker_client::WorkerClient;
use switchyard_proto::worker::{
    DescribeRequest, DescribeResponse, FormGroupRequest, LoadProgress, LoadRequest, RankBatch,
    StepOutput,
};
use switchyard_tls::{Role, Security, Service};
use tokio::sync::mpsc;
use tokio::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{Connector, Error, Messages, RankLink};

/// A silent connection is asked for a sign of life this often, and given up when it answers none for as long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Largest message from a worker. A step's samples with 20 alternatives each fit many times over.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Dials workers over HTTP/2, with TLS or without.
#[derive(Clone, Debug)]
pub struct GrpcConnector {
    connector: switchyard_tls::Connector,
}

/// A connection to one worker.
#[derive(Clone, Debug)]
struct GrpcLink {
    client: WorkerClient<Channel>,
}

// === impl GrpcConnector ===

impl GrpcConnector {
    /// Dials with `security`. With TLS, whoever answers must be a worker.
    #[must_use]
    pub fn new(security: &Security) -> Self {
        Self { connector: security.connector(Service::Control, Role::Worker) }
    }
}

impl Connector for GrpcConnector {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<Box<dyn RankLink>, Error>> {
        Box::pin(async move {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
                Error::Failed(format!("its control address {address:?} is not host:port"))
            })?;
            let channel = endpoint
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .connect_with_connector(self.connector.service())
                .await
                .map_err(|error| Error::Lost(chain(&error)))?;
            let client = WorkerClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(Box::new(GrpcLink { client }) as Box<dyn RankLink>)
        })
    }
}

// === impl GrpcLink ===

impl RankLink for GrpcLink {
    fn describe(&self) -> BoxFuture<'_, Result<DescribeResponse, Error>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            client
                .describe(DescribeRequest {})
                .await
                .map(tonic::Response::into_inner)
                .map_err(error)
        })
    }

    fn load(&self, request: LoadRequest) -> BoxFuture<'_, Result<Messages<LoadProgress>, Error>> {
        let mut client = self.client.clone();
        Box::pin(async move { client.load(request).await.map(messages).map_err(error) })
    }

    fn form_group(&self, request: FormGroupRequest) -> BoxFuture<'_, Result<(), Error>> {
        let mut client = self.client.clone();
        Box::pin(async move { client.form_group(request).await.map(|_| ()).map_err(error) })
    }

    fn execute(
        &self,
        batches: mpsc::Receiver<RankBatch>,
    ) -> BoxFuture<'_, Result<Messages<StepOutput>, Error>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            client.execute(ReceiverStream::new(batches)).await.map(messages).map_err(error)
        })
    }
}

fn messages<T: Send + 'static>(response: tonic::Response<Streaming<T>>) -> Messages<T> {
    response.into_inner().map(|message| message.map_err(error)).boxed()
}

/// A status with a source was made on this side, because the connection failed; one without came from the worker.
#[expect(clippy::needless_pass_by_value, reason = "passed to map_err")]
fn error(status: Status) -> Error {
    match status.source() {
        Some(source) => Error::Lost(chain(source)),
        None => Error::Failed(status.message().to_owned()),
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
