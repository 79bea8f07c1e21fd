//! The one task that commits.

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use metrics::{counter, histogram};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Batch, Row, RowKey, Shared, Usage};
use crate::auth::database::Database;
use crate::auth::record::saturating;
use crate::chat::usage::Chain;
use crate::metric_definitions as names;

/// Pause after a commit that failed; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a commit may take before it is tried again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long commits are tried again at shutdown.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);
/// For how long it is remembered what a writer wrote last: far longer than one tries again.
const WRITERS_KEPT_SECONDS: i64 = 7 * 86_400;

/// Commits what a [`Ledger`](super::Ledger) collects.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    database: Database,
    id: String,
    /// Number of the batch that is committed, or was last.
    pub(super) number: i64,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, database: Database) -> Self {
        Self { shared, database, id: Uuid::new_v4().to_string(), number: 0 }
    }

    /// Commits until `stop` is cancelled, then what is left. Charges fail afterwards.
    pub async fn run(mut self, stop: CancellationToken) {
        self.forget_old_writers().await;
        loop {
            let stopping = stop.is_cancelled();
            match self.take(stopping) {
                Some(batch) => self.write(batch, &stop).await,
                None if stopping => return,
                None => {
                    tokio::select! {
                        () = self.shared.filled.notified() => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    /// What has been collected. When there is nothing and `close` is set, nothing more is collected.
    fn take(&self, close: bool) -> Option<Batch> {
        let mut state = self.shared.state();
        if state.batch.rows.is_empty() {
            state.is_closed |= close;
            return None;
        }
        Some(std::mem::replace(&mut state.batch, Batch::new()))
    }

    /// Commits a batch, however often it takes. At shutdown there is an end to it.
    async fn write(&mut self, batch: Batch, stop: &CancellationToken) {
        self.number += 1;
        let mut pause = RETRY_MIN;
        let mut give_up_at = None;
        loop {
            let began = Instant::now();
            let commit = tokio::time::timeout(COMMIT_TIMEOUT, self.commit(&batch));
            let timed_out = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
            match commit.await.unwrap_or_else(|_| Err(timed_out())) {
                Ok(()) => {
                    histogram!(names::LEDGER_COMMIT_DURATION).record(began.elapsed());
                    batch.is_durable.send_replace(true);
                    return;
                }
                Err(error) => {
                    counter!(names::LEDGER_COMMIT_FAILURES_TOTAL).increment(1);
                    tracing::error!(error = %Chain(&error), "cannot record usage; trying again");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + FLUSH_WITHIN);
                if Instant::now() >= give_up_at {
                    tracing::error!(usage = ?batch.rows, "usage is lost: the database does not answer");
                    return;
                }
                tokio::time::sleep(pause).await;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Adds the batch to the tables, unless it is there already.
    pub(super) async fn commit(&self, batch: &Batch) -> Result<(), sqlx::Error> {
        let mut transaction = self.database.pool.begin().await?;
        let is_new = sqlx::query(
            "INSERT INTO usage_writers (writer, batch, written_at) VALUES ($1, $2, $3) \
             ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, written_at = excluded.written_at \
             WHERE usage_writers.batch < excluded.batch",
        )
        .bind(self.id.as_str())
        .bind(self.number)
        .bind(self.shared.clock.unix_seconds())
        .execute(&mut *transaction)
        .await?;
        if is_new.rows_affected() == 0 {
            return transaction.rollback().await;
        }
        for (key, row) in &batch.rows {
            add_row(&mut transaction, key, row).await?;
        }
        transaction.commit().await
    }

    async fn forget_old_writers(&self) {
        let before = self.shared.clock.unix_seconds() - WRITERS_KEPT_SECONDS;
        let deleted = sqlx::query("DELETE FROM usage_writers WHERE written_at < $1")
            .bind(before)
            .execute(&self.database.pool)
            .await;
        if let Err(error) = deleted {
            tracing::warn!(error = %Chain(&error), "cannot tidy up the ledger's writers");
        }
    }
}

/// Adds the usage of one request to the tables, within a transaction of the caller's.
pub(crate) async fn add(
    transaction: &mut sqlx::Transaction<'_, sqlx::Any>,
    usage: &Usage,
    day: Date,
) -> Result<(), sqlx::Error> {
    let key = RowKey { key_id: usage.key_id, day, model: Arc::clone(&usage.model) };
    let mut row = Row::default();
    row.add(&usage.tokens);
    add_row(transaction, &key, &row).await
}

async fn add_row(
    transaction: &mut sqlx::Transaction<'_, sqlx::Any>,
    key: &RowKey,
    row: &Row,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO usage (key_id, day, model, requests, prompt_tokens, cached_tokens, completion_tokens, \
         reasoning_tokens) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (key_id, day, model) DO UPDATE SET \
         requests = usage.requests + excluded.requests, \
         prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens, \
         cached_tokens = usage.cached_tokens + excluded.cached_tokens, \
         completion_tokens = usage.completion_tokens + excluded.completion_tokens, \
         reasoning_tokens = usage.reasoning_tokens + excluded.reasoning_tokens",
    )
    .bind(key.key_id.get())
    .bind(key.day.to_string())
    .bind(key.model.as_ref())
    .bind(saturating(row.requests))
    .bind(saturating(row.tokens.prompt))
    .bind(saturating(row.tokens.cached))
    .bind(saturating(row.tokens.completion))
    .bind(saturating(row.tokens.reasoning))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
