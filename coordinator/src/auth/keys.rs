//! The keys of one database: made, listed, changed, revoked and checked.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::civil::Date;
use sqlx::any::AnyRow;
use tokio::time::Instant;

use super::account::{Account, Denied};
use super::cache::Cache;
use super::clock::Clock;
use super::database::Database;
use super::key::PlaintextKey;
use super::record::{KeyChange, KeyId, KeyRecord, KeyState, Terms, models_to_json, saturating};
use super::{AdmitError, Error};

/// The keys of one database. Cheap to clone; clones share the cache.
#[derive(Clone, Debug)]
pub struct KeyStore {
    database: Database,
    cache: Arc<Mutex<Cache>>,
    clock: Clock,
}

// === impl KeyStore ===

impl KeyStore {
    /// Opens a database, `sqlite://PATH` or `postgres://HOST/NAME`, makes a missing SQLite file, and brings the tables up
    /// to date.
    ///
    /// # Errors
    /// [`Error::Url`], or [`Error::Open`] when the file is corrupt, read-only, not a database, the disk is full, or the
    /// server does not let us in.
    pub async fn open(url: &str) -> Result<Self, Error> {
        Ok(Self::new(Database::open(url).await?, Clock::system()))
    }

    /// The keys of an open database.
    pub(super) fn new(database: Database, clock: Clock) -> Self {
        Self { database, cache: Arc::new(Mutex::new(Cache::default())), clock }
    }

    /// The database, for what is kept beside the keys.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// What dates are told by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Makes a key. The plaintext is returned here and nowhere else.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn create(&self, terms: &Terms) -> Result<(KeyRecord, PlaintextKey), Error> {
        let key = PlaintextKey::generate();
        let record = self.insert(terms, &key).await?;
        Ok((record, key))
    }

    /// Makes a key of the caller's choice valid, whether or not it was known, disabled or revoked before. One that is
    /// known keeps its other terms.
    ///
    /// # Errors
    /// [`Error::BadKey`] when a header could not carry it, else [`Error::Query`].
    pub async fn insert_plaintext(&self, name: &str, key: &str) -> Result<KeyRecord, Error> {
        let key = PlaintextKey::parse(key).map_err(Error::BadKey)?;
        self.insert(&Terms { name: name.to_owned(), ..Terms::default() }, &key).await
    }

    async fn insert(&self, terms: &Terms, key: &PlaintextKey) -> Result<KeyRecord, Error> {
        let limits = &terms.limits;
        let row = sqlx::query(
            "INSERT INTO api_keys (name, hash, prefix, created_at, expires_at, models, requests_per_minute, \
             tokens_per_minute, concurrent_requests, monthly_tokens) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (hash) DO UPDATE SET revoked_at = NULL, disabled_at = NULL RETURNING *",
        )
        .bind(&terms.name)
        .bind(key.hash().to_vec())
        .bind(key.prefix())
        .bind(self.clock.unix_seconds())
        .bind(terms.expires_at)
        .bind(models_to_json(&terms.models))
        .bind(limits.requests_per_minute.map(|limit| i64::from(limit.get())))
        .bind(limits.tokens_per_minute.map(|limit| i64::from(limit.get())))
        .bind(limits.concurrent_requests.map(|limit| i64::from(limit.get())))
        .bind(limits.monthly_tokens.map(|limit| saturating(limit.get())))
        .fetch_one(&self.database.pool)
        .await;
        self.record("create a key", row)
    }

    /// All keys, oldest first, revoked ones too.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn list(&self) -> Result<Vec<KeyRecord>, Error> {
        let action = "list keys";
        let rows = sqlx::query("SELECT * FROM api_keys ORDER BY id")
            .fetch_all(&self.database.pool)
            .await
            .map_err(self.database.failed(action))?;
        rows.into_iter().map(|row| self.record(action, Ok(row))).collect()
    }

    /// One key.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], [`Error::Query`].
    pub async fn get(&self, id: KeyId) -> Result<KeyRecord, Error> {
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1")
            .bind(id.get())
            .fetch_one(&self.database.pool)
            .await;
        self.known("look up a key", id, row)
    }

    /// Changes the terms of a key. Running coordinators notice within a second.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], [`Error::Query`].
    pub async fn update(&self, id: KeyId, change: &KeyChange) -> Result<KeyRecord, Error> {
        let disabled_at = change.active.map(|on| if on { 0 } else { self.clock.unix_seconds() });
        // One statement, so that two changes at once do not undo each other. An absent parameter keeps, zero clears.
        let row = sqlx::query(
            "UPDATE api_keys SET name = COALESCE($2, name), models = COALESCE($3, models), \
             disabled_at = NULLIF(COALESCE($4, disabled_at), 0), \
             expires_at = NULLIF(COALESCE($5, expires_at), 0), \
             requests_per_minute = NULLIF(COALESCE($6, requests_per_minute), 0), \
             tokens_per_minute = NULLIF(COALESCE($7, tokens_per_minute), 0), \
             concurrent_requests = NULLIF(COALESCE($8, concurrent_requests), 0), \
             monthly_tokens = NULLIF(COALESCE($9, monthly_tokens), 0) \
             WHERE id = $1 RETURNING *",
        )
        .bind(id.get())
        .bind(change.name.as_deref())
        .bind(change.models.as_deref().map(models_to_json))
        .bind(disabled_at)
        .bind(change.expires_at.into_sql(|at| at))
        .bind(change.requests_per_minute.into_sql(|limit| limit.get().into()))
        .bind(change.tokens_per_minute.into_sql(|limit| limit.get().into()))
        .bind(change.concurrent_requests.into_sql(|limit| limit.get().into()))
        .bind(change.monthly_tokens.into_sql(|limit| saturating(limit.get())))
        .fetch_one(&self.database.pool)
        .await;
        let record = self.known("change a key", id, row)?;
        self.cache().forget_key(id);
        Ok(record)
    }

    /// Makes a key invalid for good. Running coordinators notice within a second.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], [`Error::Query`].
    pub async fn revoke(&self, id: KeyId) -> Result<KeyRecord, Error> {
        let row = sqlx::query(
            "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1 RETURNING *",
        )
        .bind(id.get())
        .bind(self.clock.unix_seconds())
        .fetch_one(&self.database.pool)
        .await;
        let record = self.known("revoke a key", id, row)?;
        self.cache().forget_key(id);
        Ok(record)
    }

    /// Who holds this key.
    ///
    /// # Errors
    /// [`Denied::Unknown`], [`Denied::Expired`], [`Denied::Inactive`], [`Error::Query`].
    pub async fn check(&self, bearer: &str) -> Result<Account, AdmitError> {
        let key = PlaintextKey::parse(bearer).map_err(|_| Denied::Unknown)?;
        // Keys are found by their hash: how long that takes says nothing about the key.
        let hash = key.hash();
        let cached = self.cache().get(&hash, Instant::now());
        let account = match cached {
            Some(account) => account,
            None => self.look_up(hash).await?,
        };
        self.check_state(account.record())?;
        Ok(account)
    }

    /// The holder of the key with this number, for what was asked for earlier.
    ///
    /// # Errors
    /// [`Denied`] as by [`Self::check`], [`Error::Query`].
    pub async fn account(&self, id: KeyId) -> Result<Account, AdmitError> {
        let record = match self.get(id).await {
            Err(Error::NoSuchKey(_)) => return Err(Denied::Unknown.into()),
            record => record?,
        };
        self.check_state(&record)?;
        self.account_of(record).await
    }

    async fn look_up(&self, hash: [u8; 32]) -> Result<Account, AdmitError> {
        let action = "check a key";
        let row = sqlx::query("SELECT * FROM api_keys WHERE hash = $1")
            .bind(hash.to_vec())
            .fetch_optional(&self.database.pool)
            .await
            .map_err(self.database.failed(action))?;
        let row = row.ok_or(Denied::Unknown)?;
        let record = self.record(action, Ok(row))?;
        let account = self.account_of(record).await?;
        self.cache().put(hash, account.clone(), Instant::now());
        Ok(account)
    }

    fn check_state(&self, record: &KeyRecord) -> Result<(), Denied> {
        match record.state(self.clock.unix_seconds()) {
            KeyState::Active => Ok(()),
            KeyState::Disabled => Err(Denied::Inactive),
            KeyState::Expired => Err(Denied::Expired),
            KeyState::Revoked => Err(Denied::Unknown),
        }
    }

    async fn account_of(&self, record: KeyRecord) -> Result<Account, AdmitError> {
        let month_tokens = match record.terms.limits.monthly_tokens {
            Some(_) => self.month_tokens(record.id).await?,
            None => 0,
        };
        Ok(Account::new(record, month_tokens))
    }

    /// Tokens of prompts and answers since the month began, over all coordinators.
    async fn month_tokens(&self, id: KeyId) -> Result<u64, Error> {
        let first: Date = self.clock.today().first_of_month();
        let sum: i64 = sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(prompt_tokens + completion_tokens), 0) AS BIGINT) FROM usage \
             WHERE key_id = $1 AND day >= $2",
        )
        .bind(id.get())
        .bind(first.to_string())
        .fetch_one(&self.database.pool)
        .await
        .map_err(self.database.failed("sum up a month's tokens"))?;
        Ok(u64::try_from(sum).unwrap_or(0))
    }

    pub(super) fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // The cache is valid after every statement, so a panic elsewhere does not spoil it.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(
        &self,
        action: &'static str,
        id: KeyId,
        row: Result<AnyRow, sqlx::Error>,
    ) -> Result<KeyRecord, Error> {
        match row {
            Err(sqlx::Error::RowNotFound) => Err(Error::NoSuchKey(id)),
            row => self.record(action, row),
        }
    }

    fn record(
        &self,
        action: &'static str,
        row: Result<AnyRow, sqlx::Error>,
    ) -> Result<KeyRecord, Error> {
        row.and_then(|row| KeyRecord::from_row(&row)).map_err(self.database.failed(action))
    }
}
