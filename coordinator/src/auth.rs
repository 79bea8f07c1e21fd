//! Accounts: Bearer keys, what their holders may use, and what they have used.
//!
//! In the order in which a request meets them:
//! - [`KeyStore`]: keys, made, changed and checked.
//! - [`Accounts`]: the way past the door; limits per minute and at once.
//! - [`ledger`]: tokens used, durable before the client is told of them.
//! - [`report`]: what was used, summed up.
//! - [`failures`]: who was not let in; [`audit`]: who changed what.
//!
//! Only the SHA-256 of a key is stored. A slow password hash would add nothing: a key carries 192 random bits,
//! so its hash cannot be searched, and a check must cost microseconds because every request does one.

pub mod clock;
pub mod record;
pub mod account;
pub mod accounts;
pub mod ledger;
pub mod report;
pub mod failures;
pub mod audit;
mod cache;
pub(crate) mod database;
mod key;
mod keys;
pub mod limiter;

pub use account::{Account, Denied};
pub use accounts::{Accounts, Charge, Lease, Tab};
pub use key::PlaintextKey;
pub use keys::KeyStore;
pub use record::{Change, KeyChange, KeyId, KeyLimits, KeyRecord, KeyState, Terms};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Why the database of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no database that this build can open.
    #[error("{url} is not the URL of a database; use sqlite://PATH or postgres://USER@HOST/NAME")]
    Url {
        /// As given, without a password.
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
    NoSuchKey(KeyId),
}

/// Why a request does not get past the door.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Nobody can tell.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The database's own words, without the wrapping that repeats them.
fn reason(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    }
}
