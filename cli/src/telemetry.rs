//! Logs and traces of a process: set up once, before anything else runs.
//!
//! Logs go to standard error, one event per line. Traces are exported by OTLP only when an endpoint is named; see
//! [`traces`]. What is logged and what is traced are chosen apart: a quiet log has the same traces.

use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::config::Invalid;

mod traces;

use traces::Traces;
pub(crate) use traces::{Protocol, Ratio};

#[cfg(test)]
mod tests;

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
    /// Export traces by OTLP to this address, such as http://127.0.0.1:4317.
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// How OTLP is spoken there.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_PROTOCOL",
        value_enum,
        default_value_t,
        value_name = "PROTOCOL"
    )]
    pub(crate) otlp_protocol: Protocol,
    /// Share of the requests that are traced, 0 to 1, of those whose caller does not say. A caller's `traceparent` decides
    /// for its own.
    #[arg(
        long,
        global = true,
        env = "SWITCHYARD_TRACE_SAMPLE_RATIO",
        default_value_t,
        value_name = "RATIO"
    )]
    pub(crate) trace_sample_ratio: Ratio,
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
    _traces: Option<Traces>,
}

// === impl Args ===

impl Args {
    /// The arguments that give another process the same traces.
    pub(crate) fn trace_arguments(&self) -> Vec<String> {
        let Some(endpoint) = &self.otlp_endpoint else { return Vec::new() };
        let words = [
            ("--otlp-endpoint", endpoint.clone()),
            ("--otlp-protocol", self.otlp_protocol.as_str().to_owned()),
            ("--trace-sample-ratio", self.trace_sample_ratio.to_string()),
        ];
        words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
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
    let traces = Traces::start(args, service)?;
    let spans = traces.as_ref().map(Traces::layer);
    tracing_subscriber::registry().with(logs.with_filter(filter)).with(spans).init();
    Ok(Guard { _traces: traces })
}

/// Logs to standard error.
pub(crate) fn to_stderr() -> BoxMakeWriter {
    BoxMakeWriter::new(std::io::stderr)
}
