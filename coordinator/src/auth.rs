//! Bearer keys: created, listed, revoked and checked.
//!
//! Only the SHA-256 of a key is stored. A slow password hash would add nothing: a key carries 192 random bits,
//! so its hash cannot be searched, and a check must cost microseconds because every request does one.

mod cache;
mod key;

use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
};
use tokio::time::Instant;

use cache::Cache;
pub use key::PlaintextKey;

#[cfg(test)]
mod tests;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// What the URL of a database begins with.
const SCHEME: &str = "sqlite:";
/// Connections to the database. Checks are cached and everything else is rare.
const CONNECTIONS_MAX: u32 = 4;
/// How long a writer waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of one database. Cheap to clone; clones share the cache.
#[derive(Clone, Debug)]
pub struct KeyStore {
    pool: SqlitePool,
    cache: Arc<Mutex<Cache>>,
    url: Arc<str>,
}

/// A stored key, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Number of the key.
    pub id: i64,
    /// Name given at creation.
    pub name: String,
    /// First characters of the key.
    pub prefix: String,
    /// Creation, in Unix seconds.
    pub created_at: i64,
    /// Revocation, in Unix seconds.
    pub revoked_at: Option<i64>,
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Number of the key.
    pub key_id: i64,
    /// Name of the key.
    pub name: String,
}

/// Why the database of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no database that this build can open.
    #[error("{url} is not a SQLite URL; use sqlite://PATH")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: sqlx::Error,
    },
    /// The database cannot be opened or brought up to date.
    #[error("cannot use the key database {url}: {}", reason(.source))]
    Open {
        /// Which database.
        url: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("cannot {action} in the key database {url}: {}", reason(.source))]
    Query {
        /// What was tried.
        action: &'static str,
        /// Which database.
        url: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// A key of one's own choice is not usable.
    #[error("the key {0}")]
    BadKey(&'static str),
    /// No key has this number.
    #[error("there is no key with id {0}; see `switchyard keys list`")]
    NoSuchKey(i64),
}

// === impl KeyStore ===

impl KeyStore {
    /// Opens a database, creates it when missing, and brings its tables up to date.
    ///
    /// # Errors
    /// [`Error::Url`], or [`Error::Open`] when the file is corrupt, read-only, not a database, or the disk is full.
    pub async fn open(url: &str) -> Result<Self, Error> {
        // Without the scheme, sqlx would take anything for the name of a file.
        let options = if url.starts_with(SCHEME) {
            SqliteConnectOptions::from_str(url)
        } else {
            Err(sqlx::Error::Configuration(format!("it does not begin with {SCHEME}").into()))
        };
        let options = options.map_err(|source| Error::Url { url: url.to_owned(), source })?;
        Self::open_with(url, options).await
    }

    async fn open_with(url: &str, options: SqliteConnectOptions) -> Result<Self, Error> {
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT);
        let failed = |source| Error::Open { url: url.to_owned(), source };
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(failed)?;
        MIGRATOR.run(&pool).await.map_err(|error| failed(error.into()))?;
        sqlx::query(
            "INSERT INTO starts (id, count) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1",
        )
        .execute(&pool)
        .await
        .map_err(failed)?;
        Ok(Self { pool, cache: Arc::new(Mutex::new(Cache::default())), url: url.into() })
    }

    /// Makes a key. The plaintext is returned here and nowhere else.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn create(&self, name: &str) -> Result<(KeyRecord, PlaintextKey), Error> {
        let key = PlaintextKey::generate();
        let record = self.insert(name, &key).await?;
        Ok((record, key))
    }

    /// Makes a key of the caller's choice valid, whether or not it was known or revoked before.
    ///
    /// # Errors
    /// [`Error::BadKey`] when a header could not carry it, else [`Error::Query`].
    pub async fn insert_plaintext(&self, name: &str, key: &str) -> Result<KeyRecord, Error> {
        let key = PlaintextKey::parse(key).map_err(Error::BadKey)?;
        self.insert(name, &key).await
    }

    async fn insert(&self, name: &str, key: &PlaintextKey) -> Result<KeyRecord, Error> {
        let row = sqlx::query(
            "INSERT INTO api_keys (name, hash, prefix, created_at) VALUES (?, ?, ?, unixepoch()) \
             ON CONFLICT (hash) DO UPDATE SET revoked_at = NULL \
             RETURNING id, name, prefix, created_at, revoked_at",
        )
        .bind(name)
        .bind(key.hash().as_slice())
        .bind(key.prefix())
        .fetch_one(&self.pool)
        .await;
        self.record("create a key", row)
    }

    /// All keys, oldest first, revoked ones too.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn list(&self) -> Result<Vec<KeyRecord>, Error> {
        let action = "list keys";
        let rows = sqlx::query(
            "SELECT id, name, prefix, created_at, revoked_at FROM api_keys ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|source| self.failed(action, source))?;
        rows.into_iter().map(|row| self.record(action, Ok(row))).collect()
    }

    /// Makes a key invalid. Running coordinators notice within a second.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], [`Error::Query`].
    pub async fn revoke(&self, id: i64) -> Result<KeyRecord, Error> {
        let row = sqlx::query(
            "UPDATE api_keys SET revoked_at = coalesce(revoked_at, unixepoch()) WHERE id = ? \
             RETURNING id, name, prefix, created_at, revoked_at",
        )
        .bind(id)
        .fetch_one(&self.pool)
        .await;
        let record = match row {
            Err(sqlx::Error::RowNotFound) => Err(Error::NoSuchKey(id)),
            row => self.record("revoke a key", row),
        }?;
        self.cache().forget_key(id);
        Ok(record)
    }

    /// Who holds this key: `None` when it is unknown or revoked.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn check(&self, bearer: &str) -> Result<Option<Account>, Error> {
        let Ok(key) = PlaintextKey::parse(bearer) else { return Ok(None) };
        let hash = key.hash();
        if let Some(account) = self.cache().get(&hash, Instant::now()) {
            return Ok(Some(account));
        }
        let row =
            sqlx::query("SELECT id, name FROM api_keys WHERE hash = ? AND revoked_at IS NULL")
                .bind(hash.as_slice())
                .fetch_optional(&self.pool)
                .await
                .map_err(|source| self.failed("check a key", source))?;
        let Some(row) = row else { return Ok(None) };
        let account = account(&row).map_err(|source| self.failed("check a key", source))?;
        self.cache().put(hash, account.clone(), Instant::now());
        Ok(Some(account))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // The cache is valid after every statement, so a panic elsewhere does not spoil it.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(
        &self,
        action: &'static str,
        row: Result<SqliteRow, sqlx::Error>,
    ) -> Result<KeyRecord, Error> {
        row.and_then(|row| {
            Ok(KeyRecord {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                prefix: row.try_get("prefix")?,
                created_at: row.try_get("created_at")?,
                revoked_at: row.try_get("revoked_at")?,
            })
        })
        .map_err(|source| self.failed(action, source))
    }

    fn failed(&self, action: &'static str, source: sqlx::Error) -> Error {
        Error::Query { action, url: self.url.to_string(), source }
    }
}

fn account(row: &SqliteRow) -> Result<Account, sqlx::Error> {
    Ok(Account { key_id: row.try_get("id")?, name: row.try_get("name")? })
}

/// The database's own words, without the wrapping that repeats them.
fn reason(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    }
}
