//! Databases for tests: SQLite in a folder, and PostgreSQL where the environment names one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

use super::clock::Clock;
use super::database::Database;
use super::keys::KeyStore;

/// Where the tests find a PostgreSQL server; `.ci/postgres` starts one.
const POSTGRES_URL: &str = "SWITCHYARD_TEST_POSTGRES_URL";
/// 2026-11-22 15:04 in UTC.
pub(crate) const NOW: i64 = 1_795_359_840;

/// An empty database and a clock that stands still.
pub(crate) struct Fixture {
    pub(crate) keys: KeyStore,
    pub(crate) url: String,
    now: Arc<AtomicI64>,
    _dir: tempfile::TempDir,
}

/// One of each kind that can be had here.
pub(crate) async fn fixtures() -> Vec<Fixture> {
    let mut fixtures = vec![Fixture::sqlite().await];
    match postgres_schema().await {
        Some(url) => fixtures.push(Fixture::open(url, tempfile::tempdir().unwrap()).await),
        None => eprintln!("skipped on PostgreSQL: {POSTGRES_URL} is not set; see .ci/postgres"),
    }
    fixtures
}

/// The URL of a new schema on the server that the environment names.
async fn postgres_schema() -> Option<String> {
    let server = std::env::var_os(POSTGRES_URL)?.into_string().unwrap();
    let schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&server).await.unwrap();
    let statement = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"));
    sqlx::query(statement).execute(&pool).await.unwrap();
    let joint = if server.contains('?') { '&' } else { '?' };
    Some(format!("{server}{joint}options[search_path]={schema}"))
}

impl Fixture {
    pub(crate) async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open(crate::options::default_database_url(dir.path()), dir).await
    }

    async fn open(url: String, dir: tempfile::TempDir) -> Self {
        let now = Arc::new(AtomicI64::new(NOW));
        let keys = open(&url, &now).await;
        Self { keys, url, now, _dir: dir }
    }

    /// The same database, as another process sees it.
    pub(crate) async fn reopen(&self) -> KeyStore {
        open(&self.url, &self.now).await
    }

    pub(crate) fn set_time(&self, unix_seconds: i64) {
        self.now.store(unix_seconds, Ordering::Relaxed);
    }

    /// Runs a statement that the program itself has no need of.
    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.keys.database().pool).await.unwrap();
    }
}

async fn open(url: &str, now: &Arc<AtomicI64>) -> KeyStore {
    let now = Arc::clone(now);
    let clock = Clock::new(move || Timestamp::from_second(now.load(Ordering::Relaxed)).unwrap());
    KeyStore::new(Database::open(url).await.unwrap(), clock)
}
