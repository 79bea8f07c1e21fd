//! `switchyard up`: a coordinator in this process, its workers as child processes, one terminal for all.
//!
//! Everything that can be wrong is found before the first worker starts: models, key database, addresses. From then on
//! the end of this process, however it comes, is the end of the workers (see [`supervisor`]).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use switchyard_coordinator::election::ElectionOptions;
use switchyard_coordinator::engine::status::GroupStatus;
use switchyard_coordinator::metric_definitions;
use switchyard_coordinator::options::{
    AdminOptions, ConnectionLimits, Limits, Options, Secret, Tls,
};
use switchyard_coordinator::server::{self, Bound, Coordinator};
use switchyard_worker::backend::device::Device;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Invalid, Problems};
use crate::coordinator::{Compat, DEFAULT_GRPC, DEFAULT_HTTP, Numerics, model_options, with_hint};
use crate::data_dir::DataDir;
use crate::models::{self, ModelArg};
use crate::shutdown::Signals;
use crate::{batches, config, descriptors, telemetry};

mod screen;
mod supervisor;
mod progress;
mod banner;
mod devices;

use banner::Banner;
use devices::Devices;
use progress::Progress;
use screen::Screen;
use supervisor::{Event, Exit, Spec, Supervisor, WorkerName};

/// Most workers of one model on one machine.
const WORKERS_MAX: usize = 64;
/// How often progress is looked at while the models load.
const REDRAW_EVERY: Duration = Duration::from_millis(20);

/// Arguments of `switchyard up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Model to serve; its id is the folder's name unless given. May be repeated [default: the two demo models].
    #[arg(long, env = "SWITCHYARD_MODELS", value_delimiter = ',', value_name = "[ID=]DIR")]
    model: Vec<String>,
    /// Worker processes of each model.
    #[arg(long, env = "SWITCHYARD_WORKERS", default_value_t = 2, value_name = "N")]
    workers: usize,
    /// Where the HTTP API listens; port 0 takes a free one.
    #[arg(long, env = "SWITCHYARD_HTTP", default_value = DEFAULT_HTTP, value_name = "ADDR")]
    http: String,
    /// Where gRPC listens; port 0 takes a free one.
    #[arg(long, env = "SWITCHYARD_GRPC", default_value = DEFAULT_GRPC, value_name = "ADDR")]
    grpc: String,
    /// Key that clients must send [default: a development key, made once and kept in the data folder].
    #[arg(long, env = "SWITCHYARD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Folder of the key database [default: the user's data folder].
    #[arg(long, env = "SWITCHYARD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Arithmetic that the workers compute in.
    #[arg(long, env = "SWITCHYARD_NUMERICS", value_enum, default_value_t)]
    numerics: Numerics,
    /// Whose API to keep to where the two differ.
    #[arg(long, env = "SWITCHYARD_COMPAT", value_enum, default_value_t)]
    compat: Compat,
    /// Where the workers compute: `cpu`; `cuda`, each worker on the next GPU; or `cuda:N`, all on one.
    #[arg(long, env = "SWITCHYARD_DEVICE", default_value = "cpu", value_name = "DEVICE")]
    device: Devices,
    /// Folder of compiled GPU kernels [default: the user's cache folder].
    #[arg(long, env = "SWITCHYARD_KERNEL_CACHE", value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
    /// What people call a model. May be repeated [default: its id].
    #[arg(long, value_name = "ID=TEXT")]
    model_title: Vec<String>,
    /// What a model is, for people. May be repeated.
    #[arg(long, value_name = "ID=TEXT")]
    model_description: Vec<String>,
    #[command(flatten)]
    batches: batches::Args,
    /// Whether `/` serves a page to try the models.
    #[arg(
        long,
        env = "SWITCHYARD_PLAYGROUND",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    playground: bool,
    /// The same as `--playground false`.
    #[arg(long)]
    no_playground: bool,
}

/// A cluster that is coming up or serves.
#[derive(Debug)]
struct Cluster {
    screen: Screen,
    supervisor: Supervisor,
    signals: Signals,
    serving: JoinHandle<Result<(), server::Error>>,
    stop: CancellationToken,
}

/// What the API asks for.
#[derive(Debug)]
struct Keys {
    client: Option<Secret>,
    /// For `switchyard status` and whoever else may read it in the data folder.
    admin: Secret,
}

/// How the coordinator's task ended.
type Served = Result<Result<(), server::Error>, JoinError>;

/// Each model's status, as it changes.
type Statuses = Vec<(String, watch::Receiver<GroupStatus>)>;

/// What happens while a cluster runs.
#[derive(Debug)]
enum News {
    Line(WorkerName, String),
    Exit(Exit),
    End(End),
}

/// Why a cluster ends.
#[derive(Debug)]
enum End {
    /// Somebody asked for it.
    Signal,
    /// A worker cannot be kept running.
    Worker(Exit),
    /// The coordinator ended by itself.
    Coordinator(anyhow::Error),
}

/// Serves until a signal.
///
/// # Errors
/// Something needed at the start is missing or in use, or a worker cannot be kept running. Nothing is left running.
pub(crate) async fn run(args: Args, log: &telemetry::Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let screen = Screen::new();
    let writer = BoxMakeWriter::new(screen.clone());
    let _telemetry = telemetry::init(log, "switchyard-coordinator", "warn", writer)?;
    let models = models_of(&args)?;
    let data = DataDir::new(args.data.as_deref());
    data.create()?;
    let dev_key = match &args.api_key {
        Some(_) => None,
        None => Some(data.dev_key_or_create()?),
    };
    let devices = tokio::task::block_in_place(|| {
        args.device.prepare(
            args.workers * models.len(),
            args.numerics,
            &kernel_cache(&args),
            &screen,
        )
    })?;
    descriptors::raise();
    let signals = Signals::install()?;
    let keys = Keys {
        client: args.api_key.clone().or_else(|| dev_key.clone()).map(Secret::new),
        admin: Secret::new(data.admin_key_or_create()?),
    };
    let bound =
        Coordinator::bind(options(&args, &models, &data, keys)?).await.map_err(with_hint)?;
    let banner = Banner {
        http: bound.http_addr(),
        grpc: bound.grpc_addr(),
        key: dev_key.as_deref(),
        has_playground: args.playground && !args.no_playground,
        models: models.iter().map(|model| model.id.as_str()).collect(),
        workers: args.workers,
        ready_after: Duration::ZERO,
        program: banner::program_to_type(),
        is_default: args.http == DEFAULT_HTTP && args.data.is_none() && dev_key.is_some(),
    };
    let specs = worker_specs(&args, &models, &devices, &bound, log)?;
    let statuses = bound.statuses();
    let stop = CancellationToken::new();
    let mut cluster = Cluster {
        supervisor: Supervisor::start(specs),
        serving: tokio::spawn(bound.serve(stop.clone())),
        screen: screen.clone(),
        signals,
        stop,
    };
    let end = match cluster.come_up(&statuses).await {
        Some(end) => end,
        None => {
            screen.line(Banner { ready_after: started.elapsed(), ..banner });
            cluster.keep_up().await
        }
    };
    cluster.end(end).await
}

fn models_of(args: &Args) -> Result<Vec<ModelArg>, Invalid> {
    let mut problems = Problems::default();
    let mut found = models::parse_all(&args.model, &mut problems);
    if args.model.is_empty() {
        found.extend(problems.take(models::demos()).into_iter().flatten());
    }
    models::describe(&mut found, &args.model_title, &args.model_description, &mut problems);
    problems.count("--workers", args.workers, WORKERS_MAX);
    problems.address("--http", &args.http);
    problems.address("--grpc", &args.grpc);
    args.batches.resolve(config::environment(), &mut problems);
    problems.finish()?;
    Ok(found)
}

fn options(
    args: &Args,
    models: &[ModelArg],
    data: &DataDir,
    keys: Keys,
) -> anyhow::Result<Options> {
    let mut problems = Problems::default();
    let batches = args.batches.resolve(config::environment(), &mut problems);
    problems.finish()?;
    Ok(Options {
        http: args.http.parse()?,
        grpc: args.grpc.parse()?,
        // Everything is on this machine.
        tls: Tls::default(),
        connections: ConnectionLimits::default(),
        data_dir: data.path().to_path_buf(),
        database_url: None,
        models: models.iter().map(|model| model_options(model, args.numerics)).collect(),
        bootstrap_key: keys.client,
        admin: Some(AdminOptions { key: keys.admin, listen: None }),
        compat: args.compat.into(),
        limits: Limits::default(),
        file_store: batches.store,
        files: batches.files,
        batches: batches.batches,
        playground: args.playground && !args.no_playground,
        election: ElectionOptions::None,
        metrics: metric_definitions::install()?,
        metrics_aliases: None,
    })
}

fn kernel_cache(args: &Args) -> PathBuf {
    args.kernel_cache.clone().unwrap_or_else(config::default_kernel_cache)
}

/// How each worker is started: this program, with addresses of this machine and its share of the processors.
fn worker_specs(
    args: &Args,
    models: &[ModelArg],
    devices: &[Device],
    bound: &Bound,
    log: &telemetry::Args,
) -> anyhow::Result<Vec<Spec>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (processors / (args.workers * models.len())).max(1);
    let coordinator = format!("http://{}", banner::reachable(bound.grpc_addr()));
    let mut specs = Vec::new();
    let mut devices = devices.iter();
    for model in models {
        let words = [
            ("--log", log.log.clone().unwrap_or_else(|| "warn".to_owned())),
            ("--log-format", log.log_format.as_str().to_owned()),
            ("--coordinator", coordinator.clone()),
            ("--model", format!("{}={}", model.id, model.dir.display())),
            ("--world-size", args.workers.to_string()),
            ("--numerics", args.numerics.as_str().to_owned()),
            ("--control", "127.0.0.1:0".to_owned()),
            ("--data-plane", "127.0.0.1:0".to_owned()),
            ("--threads", threads.to_string()),
            ("--kernel-cache", kernel_cache(args).display().to_string()),
        ];
        let mut arguments = vec!["worker".to_owned(), "--exit-with-stdin".to_owned()];
        arguments.extend(words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        arguments.extend(log.trace_arguments());
        specs.extend((1..=args.workers).zip(&mut devices).map(|(number, device)| {
            let device = ["--device".to_owned(), device.to_string()];
            Spec {
                name: WorkerName { model: model.id.clone(), number },
                program: program.clone(),
                args: arguments.iter().cloned().chain(device).collect(),
            }
        }));
    }
    Ok(specs)
}

// === impl Cluster ===

impl Cluster {
    /// Shows progress until every model is ready. Before that, the death of a worker is the end: it would die again.
    async fn come_up(&mut self, statuses: &Statuses) -> Option<End> {
        let mut progress = Progress::new(self.screen.clone());
        let mut redraw = tokio::time::interval(REDRAW_EVERY);
        let end = loop {
            tokio::select! {
                _ = redraw.tick() => {
                    if progress.show(statuses) {
                        break None;
                    }
                }
                news = self.next() => match news {
                    News::End(end) => break Some(end),
                    News::Line(name, text) => self.screen.note(format_args!("{name}: {text}")),
                    News::Exit(exit) => break Some(End::Worker(exit)),
                }
            }
        };
        progress.clear();
        end
    }

    /// Tells what happens to the workers, until the end.
    async fn keep_up(&mut self) -> End {
        loop {
            match self.next().await {
                News::End(end) => return end,
                News::Line(name, text) => self.screen.note(format_args!("{name}: {text}")),
                News::Exit(exit) => match exit.restart_in {
                    None => return End::Worker(exit),
                    Some(pause) => self.screen.line(format_args!(
                        "{} died ({}); it is started again in {} ms",
                        exit.name,
                        exit.cause,
                        pause.as_millis()
                    )),
                },
            }
        }
    }

    /// The next thing that happens. Nothing is lost when this is dropped before it returns.
    async fn next(&mut self) -> News {
        tokio::select! {
            () = self.signals.next() => News::End(End::Signal),
            ended = &mut self.serving => News::End(End::Coordinator(ended_early(ended))),
            Some(event) = self.supervisor.next_event() => match event {
                Event::Line(name, text) => News::Line(name, text),
                Event::Exited(exit) => News::Exit(exit),
            },
        }
    }

    /// Lets running streams finish, then ends the workers. A second signal ends the wait.
    async fn end(mut self, end: End) -> anyhow::Result<ExitCode> {
        // The coordinator asks the workers to go once they have nothing left to do.
        self.supervisor.retire();
        if !matches!(end, End::Coordinator(_)) {
            if matches!(end, End::Signal) {
                self.screen
                    .line("stopping: running answers may finish; Ctrl-C again cuts them off");
            }
            self.stop.cancel();
            tokio::select! {
                _ = &mut self.serving => {}
                () = self.signals.next() => self.serving.abort(),
            }
        }
        let screen = self.screen;
        self.supervisor.stop(|name, line| screen.note(format_args!("{name}: {line}"))).await;
        match end {
            End::Signal => Ok(ExitCode::SUCCESS),
            End::Worker(exit) => bail!("{} ended: {}", exit.name, exit.cause),
            End::Coordinator(error) => Err(error),
        }
    }
}

/// Why the coordinator ended although nobody asked it to.
fn ended_early(ended: Served) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the coordinator ended by itself"),
        Ok(Err(error)) => error.into(),
        Err(panic) => anyhow::Error::new(panic).context("the coordinator ended by itself"),
    }
}
