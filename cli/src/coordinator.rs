//! `switchyard coordinator`: the API, the scheduler and the cluster's membership, in a process of its own.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use switchyard_coordinator::metric_definitions;
use switchyard_coordinator::options::{
    AdminOptions, ConnectionLimits, Limits, ModelOptions, Options, Secret, Tls,
};
use switchyard_coordinator::server::{self, Coordinator};

use crate::config::{Invalid, Problems};
use crate::data_dir::DataDir;
use crate::models::{self, ModelArg};
use crate::shutdown::Signals;
use crate::{batches, config, descriptors, election, telemetry, tls};

/// Where the HTTP API listens unless told otherwise.
pub(crate) const DEFAULT_HTTP: &str = "127.0.0.1:8080";
/// Where gRPC listens unless told otherwise.
pub(crate) const DEFAULT_GRPC: &str = "127.0.0.1:9090";

/// Most connections of a port that may be asked for.
const CONNECTIONS_MAX: usize = 1 << 20;
/// Files that a coordinator opens besides its clients' connections: databases, uploads, workers.
const FILES_BESIDES_CONNECTIONS: u64 = 512;
/// Fewer can be guessed.
const ADMIN_KEY_LEN_MIN: usize = 16;

/// Arguments of `switchyard coordinator`. A file given with `--config` may hold the same names in snake case.
#[derive(Debug, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Args {
    /// TOML file with these settings; flags and environment win over it.
    #[arg(long, env = "SWITCHYARD_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Model to serve; its id is the folder's name unless given. May be repeated.
    #[arg(long, env = "SWITCHYARD_MODELS", value_delimiter = ',', value_name = "[ID=]DIR")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    model: Vec<String>,
    /// Where the HTTP API listens [default: 127.0.0.1:8080].
    #[arg(long, env = "SWITCHYARD_HTTP", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    /// Where gRPC listens, for clients and workers [default: 127.0.0.1:9090].
    #[arg(long, env = "SWITCHYARD_GRPC", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc: Option<String>,
    /// Folder of the coordinator's own files [default: the user's data folder].
    #[arg(long, env = "SWITCHYARD_DATA", value_name = "DIR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Database of keys and usage, sqlite://PATH or postgres://USER:PASSWORD@HOST/NAME [default: SQLite in the data folder].
    #[arg(long, env = "SWITCHYARD_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// A key that is accepted from the start, besides those of `switchyard keys`.
    #[arg(long, env = "SWITCHYARD_API_KEY", hide_env_values = true, value_name = "KEY")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    /// Key of the admin API, at least 16 characters. Without one there is no admin API.
    #[arg(long, env = "SWITCHYARD_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_key: Option<String>,
    /// File that holds the key of the admin API.
    #[arg(long, env = "SWITCHYARD_ADMIN_KEY_FILE", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_key_file: Option<PathBuf>,
    /// Where the admin API listens [default: with the rest of the HTTP API].
    #[arg(long, env = "SWITCHYARD_ADMIN_LISTEN", value_name = "ADDR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_listen: Option<String>,
    /// Arithmetic that workers must compute in [default: official].
    #[arg(long, env = "SWITCHYARD_NUMERICS", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    numerics: Option<Numerics>,
    /// Longest sequence, prompt and answer together, in tokens [default: the model's limit].
    #[arg(long, env = "SWITCHYARD_MAX_MODEL_LEN", value_name = "TOKENS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    /// Whose API to keep to where the two differ [default: openai].
    #[arg(long, env = "SWITCHYARD_COMPAT", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compat: Option<Compat>,
    /// What people call a model. May be repeated [default: its id].
    #[arg(long, value_name = "ID=TEXT")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    model_title: Vec<String>,
    /// What a model is, for people. May be repeated.
    #[arg(long, value_name = "ID=TEXT")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    model_description: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    batches: batches::Args,
    #[command(flatten)]
    #[serde(flatten)]
    election: election::Args,
    #[command(flatten)]
    #[serde(flatten)]
    http_tls: tls::HttpArgs,
    #[command(flatten)]
    #[serde(flatten)]
    cluster_tls: tls::ClusterArgs,
    /// Most open connections of each port; one more closes the one that has been idle for longest [default: 4096].
    #[arg(long, env = "SWITCHYARD_CONNECTIONS_MAX", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connections_max: Option<usize>,
    /// Show some metrics under other names, too, for gateways that know no others [default: none].
    #[arg(long, env = "SWITCHYARD_METRICS_ALIASES", value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metrics_aliases: Option<MetricsAliases>,
    /// Whether `/` serves a page to try the models [default: true].
    #[arg(long, env = "SWITCHYARD_PLAYGROUND", value_name = "BOOL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    playground: Option<bool>,
    /// The same as `--playground false`.
    #[arg(long)]
    #[serde(skip)]
    no_playground: bool,
}

/// Whose API the coordinator keeps to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compat {
    /// What a field says is done, also while the model thinks; `n` up to 16.
    #[default]
    #[value(name = "openai")]
    OpenAi,
    /// As the official API: thinking fixes temperature and `top_p`, penalties have no effect, `n` is 1.
    #[value(name = "deepseek")]
    DeepSeek,
}

/// Whose names metrics have besides ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MetricsAliases {
    /// Those of vLLM that inference gateways read.
    Vllm,
}

/// Arithmetic of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Numerics {
    /// Activations in f32: the yardstick.
    Exact,
    /// DeepSeek's own: bf16 activations, e4m3 and fp4 where the released model has them.
    #[default]
    Official,
}

/// Runs a coordinator until a signal.
///
/// # Errors
/// The configuration, a model, an address or the key database cannot be used; nothing has been started then.
pub(crate) async fn run(args: Args, log: &telemetry::Args) -> anyhow::Result<ExitCode> {
    let options = resolve(&args)?;
    let _telemetry =
        telemetry::init(log, "switchyard-coordinator", "info", telemetry::to_stderr())?;
    let files = descriptors::raise();
    let wanted = options.connections.connections_max as u64;
    if let Some(files) = files.filter(|files| *files < wanted + FILES_BESIDES_CONNECTIONS) {
        tracing::warn!(
            files,
            wanted,
            "the system allows fewer open files than connections may need"
        );
    }
    let stop = Signals::install()?.into_token();
    let bound = Coordinator::bind(options).await.map_err(with_hint)?;
    tracing::info!(http = %bound.http_addr(), grpc = %bound.grpc_addr(), "coordinator listens");
    bound.serve(stop).await?;
    Ok(ExitCode::SUCCESS)
}

fn resolve(args: &Args) -> anyhow::Result<Options> {
    let typed: Args = config::merge(args.config.as_deref(), args)?;
    let mut problems = Problems::default();
    let http = problems.address("--http", typed.http.as_deref().unwrap_or(DEFAULT_HTTP));
    let grpc = problems.address("--grpc", typed.grpc.as_deref().unwrap_or(DEFAULT_GRPC));
    let mut models = models::parse_all(&typed.model, &mut problems);
    let admin = admin(&typed, &mut problems);
    let tls = Tls {
        http: typed.http_tls.resolve(&mut problems),
        cluster: typed.cluster_tls.resolve(&mut problems),
    };
    let connections = connections(&typed, &mut problems);
    let batches = typed.batches.resolve(config::environment(), &mut problems);
    let election = typed.election.resolve(&mut problems);
    if typed.model.is_empty() {
        problems.required::<()>("at least one --model", None);
    }
    models::describe(&mut models, &typed.model_title, &typed.model_description, &mut problems);
    problems.finish()?;
    let (Some(http), Some(grpc)) = (http, grpc) else {
        return Err(Invalid::one("the addresses cannot be used").into());
    };
    let numerics = typed.numerics.unwrap_or_default();
    Ok(Options {
        http,
        grpc,
        tls,
        connections,
        data_dir: DataDir::new(typed.data.as_deref()).path().to_path_buf(),
        database_url: typed.database_url,
        models: models
            .iter()
            .map(|model| ModelOptions {
                max_model_len: typed.max_model_len,
                ..model_options(model, numerics)
            })
            .collect(),
        bootstrap_key: typed.api_key.map(Secret::new),
        admin,
        compat: typed.compat.unwrap_or_default().into(),
        limits: Limits::default(),
        file_store: batches.store,
        files: batches.files,
        batches: batches.batches,
        playground: !args.no_playground && typed.playground.unwrap_or(true),
        election,
        metrics: metric_definitions::install()?,
        metrics_aliases: typed.metrics_aliases.map(MetricsAliases::into),
    })
}

fn connections(typed: &Args, problems: &mut Problems) -> ConnectionLimits {
    let mut limits = ConnectionLimits::default();
    if let Some(typed) = typed.connections_max {
        let max = problems.count("--connections-max", typed, CONNECTIONS_MAX);
        limits.connections_max = max.map_or(limits.connections_max, NonZeroUsize::get);
    }
    limits
}

/// How the admin API is reached, if it is wanted.
fn admin(typed: &Args, problems: &mut Problems) -> Option<AdminOptions> {
    let listen =
        typed.admin_listen.as_deref().and_then(|typed| problems.address("--admin-listen", typed));
    let key = match (&typed.admin_key, &typed.admin_key_file) {
        (Some(_), Some(_)) => problems.take(Err("give --admin-key or --admin-key-file, not both")),
        (Some(key), None) => Some(key.clone()),
        (None, Some(path)) => problems.take(read_key(path)),
        (None, None) if typed.admin_listen.is_some() => {
            problems.take(Err("--admin-listen needs --admin-key or --admin-key-file"))
        }
        (None, None) => None,
    }?;
    if key.len() < ADMIN_KEY_LEN_MIN || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return problems.take(Err(format!(
            "the admin key must have at least {ADMIN_KEY_LEN_MIN} visible ASCII characters"
        )));
    }
    Some(AdminOptions { key: Secret::new(key), listen })
}

fn read_key(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("--admin-key-file {}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// What the coordinator is told about a model.
pub(crate) fn model_options(model: &ModelArg, numerics: Numerics) -> ModelOptions {
    ModelOptions {
        numerics: numerics.into(),
        title: model.title.clone(),
        description: model.description.clone(),
        ..ModelOptions::new(model.id.clone(), model.dir.clone())
    }
}

/// Names the flag that moves a port that cannot be taken.
pub(crate) fn with_hint(error: server::Error) -> anyhow::Error {
    let server::Error::Bind { api, .. } = &error else { return error.into() };
    let flag = match *api {
        "HTTP" => "--http",
        "admin" => "--admin-listen",
        _ => "--grpc",
    };
    anyhow::anyhow!("{error}; name another address with {flag}")
}

// === impl Numerics ===

impl Numerics {
    /// The name that flags, messages and the protocol use.
    pub(crate) fn as_str(self) -> &'static str {
        switchyard_coordinator::options::Numerics::from(self).as_str()
    }
}

impl From<Numerics> for switchyard_coordinator::options::Numerics {
    fn from(numerics: Numerics) -> Self {
        match numerics {
            Numerics::Exact => Self::Exact,
            Numerics::Official => Self::Official,
        }
    }
}

impl From<MetricsAliases> for switchyard_coordinator::http::aliases::Aliases {
    fn from(aliases: MetricsAliases) -> Self {
        match aliases {
            MetricsAliases::Vllm => Self::Vllm,
        }
    }
}

impl From<Compat> for switchyard_coordinator::chat::compat::Compat {
    fn from(compat: Compat) -> Self {
        match compat {
            Compat::OpenAi => Self::OpenAi,
            Compat::DeepSeek => Self::DeepSeek,
        }
    }
}

impl From<Numerics> for switchyard_worker::backend::Numerics {
    fn from(numerics: Numerics) -> Self {
        match numerics {
            Numerics::Exact => Self::Exact,
            Numerics::Official => Self::Official,
        }
    }
}
