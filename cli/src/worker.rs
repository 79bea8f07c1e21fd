//! `switchyard worker`: one rank of one model's group, in a process of its own.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde::{Deserialize, Serialize};
use switchyard_moe::ids::ModelId;
use switchyard_worker::backend::device::{Device, Exchange, UnknownDevice, UnknownExchange};
use switchyard_worker::options::EXCHANGE_DEADLINE;
use switchyard_worker::{Options, Worker, metric_definitions};
use tonic::transport::Uri;

use crate::config::{Invalid, Problems};
use crate::coordinator::Numerics;
use crate::models;
use crate::shutdown::{self, Signals};
use crate::{config, telemetry, tls};

/// Where a worker listens unless told otherwise.
const ANY_LOCAL_PORT: &str = "127.0.0.1:0";
/// Most ranks of one group.
const WORLD_SIZE_MAX: usize = 1024;
/// Most threads of one worker.
const THREADS_MAX: usize = 1024;

/// Arguments of `switchyard worker`. A file given with `--config` may hold the same names in snake case.
#[derive(Debug, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Args {
    /// TOML file with these settings; flags and environment win over it.
    #[arg(long, env = "SWITCHYARD_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The coordinator's gRPC address, such as http://coordinator:9090.
    #[arg(long, env = "SWITCHYARD_COORDINATOR", value_name = "URL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coordinator: Option<String>,
    /// Model to serve a part of; its id is the folder's name unless given.
    #[arg(long, env = "SWITCHYARD_MODEL", value_name = "[ID=]DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Workers of the group; all must agree.
    #[arg(long, env = "SWITCHYARD_WORLD_SIZE", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    world_size: Option<usize>,
    /// Arithmetic; must be the coordinator's [default: official].
    #[arg(long, env = "SWITCHYARD_NUMERICS", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    numerics: Option<Numerics>,
    /// Where to compute: `cpu`, `cuda` or `cuda:N` [default: cpu].
    #[arg(long, env = "SWITCHYARD_DEVICE", value_name = "DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// How GPUs exchange rows: `nccl`, or `host` by way of the data plane [default: nccl].
    #[arg(long, env = "SWITCHYARD_EXCHANGE", value_name = "WAY")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    /// Folder of compiled GPU kernels [default: the user's cache folder].
    #[arg(long, env = "SWITCHYARD_KERNEL_CACHE", value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel_cache: Option<PathBuf>,
    /// Where the coordinator drives this worker [default: a free port of 127.0.0.1].
    #[arg(long, env = "SWITCHYARD_CONTROL", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    control: Option<String>,
    /// Where peers send activations [default: a free port of 127.0.0.1].
    #[arg(long, env = "SWITCHYARD_DATA_PLANE", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_plane: Option<String>,
    /// Name or IP address under which the coordinator and peers reach this machine
    /// [default: that of the listening addresses].
    #[arg(long, env = "SWITCHYARD_ADVERTISE", value_name = "HOST")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// Threads that compute [default: one per processor].
    #[arg(long, env = "SWITCHYARD_THREADS", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    cluster_tls: tls::ClusterArgs,
    /// Where metrics are served over HTTP at /metrics [default: nowhere].
    #[arg(long, env = "SWITCHYARD_METRICS", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metrics: Option<String>,
    /// End when standard input ends; `up` starts its workers so.
    #[arg(long, hide = true)]
    #[serde(skip)]
    exit_with_stdin: bool,
}

/// Serves as a rank until a signal, the coordinator's wish, or the end of standard input.
///
/// # Errors
/// The configuration, the checkpoint or an address cannot be used, the coordinator refuses the worker, or it fails.
pub(crate) async fn run(args: Args, log: &telemetry::Args) -> anyhow::Result<ExitCode> {
    let config = resolve(&args)?;
    let _telemetry = telemetry::init(log, "switchyard-worker", "info", telemetry::to_stderr())?;
    if let Some(address) = config.metrics {
        serve_metrics(address)?;
    }
    let stop = Signals::install()?.into_token();
    if args.exit_with_stdin {
        let stop = stop.clone();
        tokio::spawn(async move {
            shutdown::stdin_closed().await;
            stop.cancel();
        });
    }
    Worker::bind(config.options).await?.run(stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// What a worker process needs.
struct Config {
    options: Options,
    metrics: Option<SocketAddr>,
}

fn resolve(args: &Args) -> Result<Config, Invalid> {
    let typed: Args = config::merge(args.config.as_deref(), args)?;
    let mut problems = Problems::default();
    let coordinator = problems.required("--coordinator", typed.coordinator);
    let tls = typed.cluster_tls.resolve(&mut problems);
    let coordinator = coordinator.and_then(|url| problems.take(parse_url(&url, tls.is_some())));
    let model = problems.required("--model", typed.model);
    let model = model.and_then(|model| problems.take(models::parse(&model)));
    let world_size = problems.required("--world-size", typed.world_size);
    let world_size = world_size.and_then(|n| problems.count("--world-size", n, WORLD_SIZE_MAX));
    let control = problems.address("--control", typed.control.as_deref().unwrap_or(ANY_LOCAL_PORT));
    let data = typed.data_plane.as_deref().unwrap_or(ANY_LOCAL_PORT);
    let data = problems.address("--data-plane", data);
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = typed.threads.unwrap_or(processors);
    let threads = problems.count("--threads", threads, THREADS_MAX);
    let device = typed.device.as_deref().unwrap_or("cpu").parse();
    let device: Option<Device> =
        problems.take(device.map_err(|error: UnknownDevice| format!("--device: {error}")));
    let exchange = typed.exchange.as_deref().unwrap_or("nccl").parse();
    let exchange: Option<Exchange> =
        problems.take(exchange.map_err(|error: UnknownExchange| format!("--exchange: {error}")));
    let device = device.zip(exchange).map(|(device, exchange)| device.with_exchange(exchange));
    let metrics = typed.metrics.map(|typed| problems.address("--metrics", &typed));
    let unspecified = [control, data].iter().flatten().any(|address| address.ip().is_unspecified());
    if unspecified && typed.advertise.is_none() {
        problems.required::<()>("--advertise HOST, when listening on all addresses,", None);
    }
    problems.finish()?;
    let complete = || {
        Some(Options {
            coordinator: coordinator?,
            model: ModelId::new(model.as_ref()?.id.as_str()),
            model_dir: model.as_ref()?.dir.clone(),
            numerics: typed.numerics.unwrap_or_default().into(),
            device: device?
                .with_kernel_cache(typed.kernel_cache.unwrap_or_else(config::default_kernel_cache)),
            world_size: world_size?,
            control_addr: control?,
            data_addr: data?,
            advertise_host: typed.advertise,
            tls,
            num_threads: threads?,
            exchange_deadline: EXCHANGE_DEADLINE,
        })
    };
    let options = complete().ok_or_else(|| Invalid::one("the configuration is incomplete"))?;
    Ok(Config { options, metrics: metrics.flatten() })
}

/// The URL without TLS in it: the files alone decide on TLS, and a URL that promises it needs them.
fn parse_url(typed: &str, has_tls: bool) -> Result<Uri, String> {
    let hint = "expected http://HOST:PORT, the coordinator's gRPC address";
    let uri: Uri = typed.parse().map_err(|_| format!("--coordinator {typed}: {hint}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("https"), Some(_)) if !has_tls => Err(format!(
            "--coordinator {typed}: https needs --cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca"
        )),
        (Some("http" | "https"), Some(authority)) if authority.port().is_some() => {
            format!("http://{authority}")
                .parse()
                .map_err(|_| format!("--coordinator {typed}: {hint}"))
        }
        _ => Err(format!("--coordinator {typed}: {hint}")),
    }
}

/// Installs the process's metrics and serves them.
fn serve_metrics(address: SocketAddr) -> anyhow::Result<()> {
    // The exporter takes the port later, in its own task; this finds out now whether it can.
    std::net::TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for metrics; see --metrics"))?;
    let durations = Matcher::Suffix(metric_definitions::DURATION_SUFFIX.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(durations, &metric_definitions::DURATION_BUCKETS)
        .context("cannot set up metrics")?
        .with_http_listener(address)
        .install()
        .with_context(|| format!("cannot serve metrics on {address}"))?;
    metric_definitions::describe();
    Ok(())
}
