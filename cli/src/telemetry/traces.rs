//! Traces by OTLP, over gRPC or HTTP.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::Args;

/// Where a collector takes traces over HTTP, below the endpoint.
const HTTP_PATH: &str = "/v1/traces";
/// Whose spans are exported; those of libraries say nothing to a user.
const TARGETS: [&str; 2] = ["switchyard_coordinator", "switchyard_worker"];

/// How OTLP is spoken; the names are OpenTelemetry's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// Over gRPC, usually on port 4317.
    #[default]
    Grpc,
    /// Over HTTP, usually on port 4318; `/v1/traces` is added to the endpoint unless it is there.
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

/// A share, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio(f64);

/// The exporter of a process. Dropping it sends what is left.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
    service: &'static str,
}

/// Sends exports with the process's own HTTP client. The exporter has a thread without a runtime.
#[derive(Clone, Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

// === impl Protocol ===

impl Protocol {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        }
    }
}

// === impl Ratio ===

impl Default for Ratio {
    fn default() -> Self {
        Self(0.01)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Ratio {
    type Err = &'static str;

    fn from_str(typed: &str) -> Result<Self, Self::Err> {
        let ratio = typed.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or("must be a number from 0 to 1")
    }
}

// === impl Traces ===

impl Traces {
    /// Starts to export, if an endpoint is named.
    pub(super) fn start(args: &Args, service: &'static str) -> anyhow::Result<Option<Self>> {
        let Some(url) = args.otlp_endpoint.as_deref().filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let exporter = exporter(url, args.otlp_protocol)
            .with_context(|| format!("--otlp-endpoint {url} cannot be used"))?;
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("process.pid", i64::from(std::process::id())),
            ])
            .build();
        let ratio = Sampler::TraceIdRatioBased(args.trace_sample_ratio.0);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider, service }))
    }

    /// Takes spans over from the log.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(self.service))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_targets(TARGETS.map(|target| (target, Level::INFO))))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // The process is ending and the collector may be gone: nothing is left to tell.
        let _ = self.provider.shutdown();
    }
}

fn exporter(url: &str, protocol: Protocol) -> anyhow::Result<SpanExporter> {
    Ok(match protocol {
        Protocol::Grpc => SpanExporter::builder().with_tonic().with_endpoint(url).build()?,
        Protocol::HttpProtobuf => {
            let http = reqwest::Client::builder().build()?;
            let client = Client { http, runtime: Handle::current() };
            SpanExporter::builder()
                .with_http()
                .with_http_client(client)
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(http_endpoint(url))
                .build()?
        }
    })
}

/// The address of traces below an endpoint that is for all signals.
pub(super) fn http_endpoint(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with(HTTP_PATH) { url.to_owned() } else { format!("{url}{HTTP_PATH}") }
}

// === impl Client ===

#[tonic::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = self.runtime.spawn(async move {
            let response = http.execute(request.try_into()?).await?.error_for_status()?;
            let status = response.status();
            let mut answer = Response::new(response.bytes().await?);
            *answer.status_mut() = status;
            Ok::<_, reqwest::Error>(answer)
        });
        Ok(sending.await??)
    }
}
