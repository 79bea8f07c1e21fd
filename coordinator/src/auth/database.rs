//! The database of keys, bills, files and batches: SQLite in a file, or PostgreSQL for several coordinators.
//!
//! One set of statements serves both: `$1` is a parameter in either dialect, times are integers that the caller passes,
//! and sums are cast to `BIGINT`. Only the tables are declared twice.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _, Executor as _};

use super::Error;

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// What the URL of a SQLite database begins with.
const SQLITE_SCHEME: &str = "sqlite:";
/// What the URL of a PostgreSQL database begins with.
const POSTGRES_SCHEMES: [&str; 2] = ["postgres:", "postgresql:"];
/// Connections to the database. Checks are cached and everything else is rare.
const CONNECTIONS_MAX: u32 = 4;
/// How long a statement waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// For each SQLite connection: readers do not wait for writers, a commit is on the disk, and a writer waits up to five
/// seconds for another process that holds the file.
const SQLITE_PRAGMAS: &str =
    "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";

/// An open database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) pool: AnyPool,
    /// Without its password.
    url: Arc<str>,
}

#[derive(Clone, Copy)]
enum Dialect {
    Sqlite,
    Postgres,
}

// === impl Database ===

impl Database {
    /// Opens a database and brings its tables up to date. A missing file is made; a missing PostgreSQL database is not.
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        Self::open_with(url, SQLITE_PRAGMAS).await
    }

    pub(super) async fn open_with(url: &str, pragmas: &'static str) -> Result<Self, Error> {
        let shown: Arc<str> = shown(url).into();
        let (dialect, options) =
            options(url).map_err(|source| Error::Url { url: shown.to_string(), source })?;
        sqlx::any::install_default_drivers();
        let failed = |source| Error::Open { url: shown.to_string(), source };
        // The pool would try again for a while and then only say that it took too long.
        let mut probe = AnyConnection::connect_with(&options).await.map_err(failed)?;
        prepare(&mut probe, dialect, pragmas).await.map_err(failed)?;
        probe.close().await.map_err(failed)?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| Box::pin(prepare(connection, dialect, pragmas)))
            .after_release(move |connection, _| Box::pin(tidy(connection, dialect)))
            .connect_with(options)
            .await
            .map_err(failed)?;
        let migrator = match dialect {
            Dialect::Sqlite => &SQLITE,
            Dialect::Postgres => &POSTGRES,
        };
        migrator.run(&pool).await.map_err(|error| failed(error.into()))?;
        sqlx::query(
            "INSERT INTO starts (id, count) VALUES (1, 1) \
             ON CONFLICT (id) DO UPDATE SET count = starts.count + 1",
        )
        .execute(&pool)
        .await
        .map_err(failed)?;
        Ok(Self { pool, url: shown })
    }

    /// Wraps the failure of a statement.
    pub(super) fn failed(&self, action: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
        let url = self.url.to_string();
        move |source| Error::Query { action, url, source }
    }
}

/// Sets up a new connection.
async fn prepare(
    connection: &mut AnyConnection,
    dialect: Dialect,
    pragmas: &'static str,
) -> Result<(), sqlx::Error> {
    match dialect {
        Dialect::Sqlite => connection.execute(pragmas).await.map(|_| ()),
        // `tidy` would make PostgreSQL warn each time that there was nothing to do.
        Dialect::Postgres => {
            connection.execute("SET client_min_messages = error").await.map(|_| ())
        }
    }
}

/// Leaves a connection without a transaction before others get it. When the future that begins one is dropped at the
/// wrong moment, PostgreSQL has begun it and sqlx does not know: what came next would be in it, and never be committed.
async fn tidy(connection: &mut AnyConnection, dialect: Dialect) -> Result<bool, sqlx::Error> {
    match dialect {
        // Its driver begins and notes it at once.
        Dialect::Sqlite => {}
        Dialect::Postgres => {
            connection.execute("ROLLBACK").await?;
        }
    }
    Ok(true)
}

fn options(url: &str) -> Result<(Dialect, AnyConnectOptions), sqlx::Error> {
    if POSTGRES_SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
        return Ok((Dialect::Postgres, AnyConnectOptions::from_str(url)?));
    }
    // Without the scheme, sqlx would take anything for the name of a file.
    if !url.starts_with(SQLITE_SCHEME) {
        let reason = "it begins with neither sqlite: nor postgres:";
        return Err(sqlx::Error::Configuration(reason.into()));
    }
    let path = SqliteConnectOptions::from_str(url)?.get_filename().to_path_buf();
    // An absolute path is the same in every form of URL; of a relative one, the first part could pass for a host.
    let path = std::path::absolute(path).map_err(sqlx::Error::Io)?.display().to_string();
    let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    let params = url.split_once('?').map_or("", |(_, params)| params);
    let mode = if params.contains("mode=") { "" } else { "mode=rwc&" };
    let options = AnyConnectOptions::from_str(&format!("sqlite://{path}?{mode}{params}"))?;
    Ok((Dialect::Sqlite, options))
}

/// The URL without what only its owner may know.
fn shown(url: &str) -> String {
    if url.starts_with(SQLITE_SCHEME) {
        return url.to_owned();
    }
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may also be among the parameters.
    let place = rest.split(['?', '#']).next().unwrap_or_default();
    // A password may hold an @; a host may not.
    match place.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
        None if rest.contains('@') => format!("{scheme}://…"),
        None => format!("{scheme}://{place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_shown_url_has_no_password() {
        for (url, expect) in [
            ("sqlite:///var/lib/a@b:c.db", "sqlite:///var/lib/a@b:c.db"),
            ("postgres://host/db", "postgres://host/db"),
            ("postgres://me@host:5432/db", "postgres://me@host:5432/db"),
            ("postgres://me:se@c:ret@host/db?sslmode=require", "postgres://me@host/db"),
            ("postgres://host/db?user=me&password=secret", "postgres://host/db"),
            ("postgres://me:sec?ret@host/db", "postgres://…"),
            ("mysql://me:secret@host", "mysql://me@host"),
        ] {
            assert_eq!(shown(url), expect);
        }
    }
}
