//! Logs and traces of a process: set up once, before anything else runs.
//!
//! Logs go to standard error, one event per line. Traces are exported by OTLP only when an endpoint is named.

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::config::Invalid;

/// Logging and tracing, the same for every command.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logs and traces")]
pub(crate) struct Args {
    /// What is logged: a level, or directives such as `info,switchyard_worker=debug`.
    #[arg(long, global = true, env = "SWITCHYARD_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Form of a log line.
    #[arg(long, global = true, env = "SWITCHYARD_LOG_FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: Format,
    /// Export traces by OTLP over gRPC to this address.
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

impl Format {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// Flushes the trace exporter when the process ends.
#[derive(Debug)]
pub(crate) struct Guard {
    traces: Option<SdkTracerProvider>,
}

/// Installs the process's logger and, with an endpoint, its trace exporter under the name `service`.
///
/// # Errors
/// The filter or the endpoint cannot be used.
pub(crate) fn init(
    args: &Args,
    service: &'static str,
    default_filter: &str,
    writer: BoxMakeWriter,
) -> anyhow::Result<Guard> {
    let typed = args.log.as_deref().unwrap_or(default_filter);
    let filter = EnvFilter::try_new(typed)
        .map_err(|error| Invalid::one(format!("--log {typed}: {error}")))?;
    let logs = fmt::layer().with_writer(writer);
    let logs = match args.log_format {
        Format::Human => {
            logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed()
        }
        Format::Json => logs.json().flatten_event(true).boxed(),
    };
    let traces = args.otlp_endpoint.as_deref().map(|url| exporter(url, service)).transpose()?;
    let spans = traces
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(service)));
    tracing_subscriber::registry().with(filter).with(logs).with(spans).init();
    Ok(Guard { traces })
}

fn exporter(url: &str, service: &'static str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(url)
        .build()
        .with_context(|| format!("--otlp-endpoint {url}"))?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = opentelemetry_sdk::Resource::builder().with_service_name(service).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

// === impl Guard ===

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            // The process is ending and the collector may be gone: nothing is left to tell.
            let _ = traces.shutdown();
        }
    }
}

/// Logs to standard error.
pub(crate) fn to_stderr() -> BoxMakeWriter {
    BoxMakeWriter::new(std::io::stderr)
}
