//! What a coordinator is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use switchyard_tls::Files as TlsFiles;

use crate::chat::compat::Compat;
use crate::cluster::CacheOptions;
use crate::election::ElectionOptions;
use crate::http::aliases::Aliases;

/// File name of the SQLite database in the data folder.
const DATABASE_FILE: &str = "switchyard.db";
/// Name of the folder of files in the data folder.
const FILES_FOLDER: &str = "files";

/// Everything a [`Coordinator`](crate::server::Coordinator) needs to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the HTTP API listens. Port 0 takes a free one.
    pub http: SocketAddr,
    /// Where gRPC listens: clients, workers, health and reflection. Port 0 takes a free one.
    pub grpc: SocketAddr,
    /// Which connections are protected by TLS.
    pub tls: Tls,
    /// Bounds on connections.
    pub connections: ConnectionLimits,
    /// Folder of the coordinator's own files; created when missing.
    pub data_dir: PathBuf,
    /// Database of keys and usage, `sqlite://PATH` or `postgres://USER@HOST/NAME`. `None`: SQLite in `data_dir`.
    pub database_url: Option<String>,
    /// Models to serve, at least one, with distinct ids.
    pub models: Vec<ModelOptions>,
    /// A key that is accepted from the start; only its hash is stored.
    pub bootstrap_key: Option<Secret>,
    /// The admin API. `None`: there is none.
    pub admin: Option<AdminOptions>,
    /// Whose API to keep to where OpenAI's and DeepSeek's differ.
    pub compat: Compat,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// Where the contents of files are kept. `None`: in a folder of `data_dir`.
    pub file_store: Option<FileStore>,
    /// Bounds on files.
    pub files: FileLimits,
    /// Bounds on batches.
    pub batches: BatchLimits,
    /// Whether `/` serves the playground, a page to try the models. It needs no key; what it asks for does.
    pub playground: bool,
    /// How several coordinators decide who leads.
    pub election: ElectionOptions,
    /// The process's metrics, from [`metric_definitions::install`](crate::metric_definitions::install).
    pub metrics: PrometheusHandle,
    /// Other names under which some of them are shown, too.
    pub metrics_aliases: Option<Aliases>,
}

/// Which connections are protected by TLS, and with which files. They may change while the coordinator runs.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificate and key of the HTTP API and the admin API. `None`: plain HTTP.
    pub http: Option<TlsFiles>,
    /// Certificate, key and authorities of this process in its cluster: of the gRPC port, and towards workers.
    /// `None`: plain.
    pub cluster: Option<TlsFiles>,
}

/// Bounds on connections, for each listener.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Most open connections. One more takes the place of the one that has been without a request for longest, and is
    /// closed if there is none.
    pub connections_max: usize,
    /// Longest time from a request's first byte to the end of its header, and from the connection to its first byte.
    pub header_read_timeout: Duration,
    /// How long a connection may be without a request. Above the 60 s of most proxies, who must be the first to close.
    pub keep_alive_timeout: Duration,
    /// Longest time that a client may refuse to take bytes that wait for it.
    pub write_timeout: Duration,
    /// Most bytes of a request's header.
    pub header_bytes_max: u32,
}

/// How the admin API is reached.
#[derive(Clone, Debug)]
pub struct AdminOptions {
    /// What it asks for. No client's key is accepted.
    pub key: Secret,
    /// Where it listens. `None`: with the rest of the HTTP API.
    pub listen: Option<SocketAddr>,
}

/// One model to serve.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Name that requests choose it by.
    pub id: String,
    /// What people call it. `None`: its id.
    pub title: Option<String>,
    /// What it is, in a sentence or two.
    pub description: Option<String>,
    /// Folder with `config.json`, `tokenizer.json` and optionally `generation_config.json`.
    pub dir: PathBuf,
    /// Whether requests that do not say think. `None`: `default_thinking` of the model's
    /// `generation_config.json`, else true.
    pub default_thinking: Option<bool>,
    /// Arithmetic its workers compute in.
    pub numerics: Numerics,
    /// Longest sequence to serve, in tokens. `None`: the model's own limit.
    pub max_model_len: Option<u32>,
    /// Sizes of its workers' state. Its `max_model_len` is taken from above.
    pub cache: CacheOptions,
}

/// Arithmetic of a model group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numerics {
    /// Activations in f32: the yardstick.
    Exact,
    /// DeepSeek's own: bf16 activations, e4m3 activation quantisation.
    #[default]
    Official,
}

/// Bounds on what clients may ask for, and how long things may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// Longest time for a client to send its request body.
    pub body_read_timeout: Duration,
    /// Most chat requests in flight, over all models and both APIs.
    pub in_flight_requests_max: usize,
    /// Silence of running sequences after which `/health/decode` reports a fault.
    pub decode_stall_after: Duration,
    /// Longest time that running streams get to finish at shutdown.
    pub drain_timeout: Duration,
}

/// Where the contents of files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStore {
    /// A folder; made when missing.
    Folder(PathBuf),
    /// A bucket of an object store that speaks S3.
    S3 {
        /// Its name.
        bucket: String,
        /// What the names of our objects begin with; may be empty.
        prefix: String,
        /// The store's settings by the names of the environment, such as `AWS_REGION` and `AWS_ENDPOINT_URL`.
        settings: Vec<(String, Secret)>,
    },
}

/// Bounds on files.
#[derive(Clone, Debug)]
pub struct FileLimits {
    /// Largest file, in bytes.
    pub file_bytes_max: u64,
    /// Most files of a key, those of batches too.
    pub files_per_key_max: u32,
    /// How long a file is kept that does not say. `None`: until it is deleted.
    pub expires_after: Option<Duration>,
    /// Longest time of an upload.
    pub upload_timeout: Duration,
}

/// Bounds on batches.
#[derive(Clone, Debug)]
pub struct BatchLimits {
    /// Most requests in a batch.
    pub lines_max: usize,
    /// Most requests of batches that a coordinator has in flight, over all of them.
    pub concurrency: usize,
    /// Most batches that a coordinator runs at the same time; others wait.
    pub running_max: usize,
    /// Most batches of a key that are not over.
    pub per_key_max: u32,
}

/// A value that must not be logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

// === impl Options ===

impl Options {
    /// URL of the database that this coordinator uses.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.database_url.clone().unwrap_or_else(|| default_database_url(&self.data_dir))
    }
}

/// The file store in a data folder.
#[must_use]
pub fn default_file_store(data_dir: &std::path::Path) -> FileStore {
    FileStore::Folder(data_dir.join(FILES_FOLDER))
}

/// URL of the SQLite database in a data folder.
#[must_use]
pub fn default_database_url(data_dir: &std::path::Path) -> String {
    // What would end the path, and what would begin an escape.
    let path = data_dir.join(DATABASE_FILE).display().to_string();
    format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F"))
}

// === impl ModelOptions ===

impl ModelOptions {
    /// A model with default numerics and its own limits.
    #[must_use]
    pub fn new(id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            title: None,
            description: None,
            dir: dir.into(),
            default_thinking: None,
            numerics: Numerics::default(),
            max_model_len: None,
            cache: CacheOptions::default(),
        }
    }
}

// === impl Numerics ===

impl Numerics {
    /// The name used in flags, messages and the protocol.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Official => "official",
        }
    }
}

impl std::fmt::Display for Numerics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            body_read_timeout: Duration::from_secs(30),
            in_flight_requests_max: 1024,
            decode_stall_after: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

// === impl ConnectionLimits ===

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            header_read_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            header_bytes_max: 32 << 10,
        }
    }
}

// === impl FileLimits ===

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            file_bytes_max: 512 << 20,
            files_per_key_max: 10_000,
            expires_after: Some(Duration::from_secs(30 * 86_400)),
            upload_timeout: Duration::from_secs(3600),
        }
    }
}

impl FileLimits {
    /// How long an upload that never ended is remembered: longer than any that still runs.
    pub(crate) fn pending_kept_seconds(&self) -> i64 {
        seconds(self.upload_timeout * 2)
    }

    pub(crate) fn expires_after_seconds(&self) -> Option<i64> {
        self.expires_after.map(seconds)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

// === impl BatchLimits ===

impl Default for BatchLimits {
    fn default() -> Self {
        Self { lines_max: 50_000, concurrency: 32, running_max: 8, per_key_max: 100 }
    }
}

// === impl Secret ===

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}
