//! What a runner has done, durable step by step. Each step names the runner, and is void if it has lost the lease.

mod lines;

use std::sync::Arc;

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Error;
use super::record::{BatchId, BatchRecord, LineError, Status};
use super::table::failed;
use crate::auth::clock::Clock;
use crate::auth::database::Database;
use crate::files::{FileId, FileRecord};
use lines::INSERTED_TOGETHER;
pub(super) use lines::{Ended, Line, Outcome};

/// One runner's way to the tables.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    database: Database,
    clock: Clock,
    /// Who holds this runner's leases.
    runner: String,
    /// Answers are recorded one by one: those that somebody waits for need the database's connections, too.
    turn: Arc<Semaphore>,
}

// === impl Journal ===

impl Journal {
    /// A runner that holds nothing yet.
    pub(super) fn new(database: Database, clock: Clock) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { database, clock, runner: Uuid::new_v4().to_string(), turn }
    }

    /// Takes the oldest batch that nobody runs, for so many seconds.
    pub(super) async fn claim(&self, seconds: i64) -> Result<Option<BatchId>, Error> {
        let now = self.clock.unix_seconds();
        let free: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') \
             AND lease_expires_at <= $1 ORDER BY id LIMIT 16",
        )
        .bind(now)
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("look for batches"))?;
        for id in free {
            let taken = sqlx::query(
                "UPDATE batches SET lease_owner = $2, lease_expires_at = $3 \
                 WHERE id = $1 AND lease_expires_at <= $4",
            )
            .bind(id.as_str())
            .bind(self.runner.as_str())
            .bind(now.saturating_add(seconds))
            .bind(now)
            .execute(&self.database.pool)
            .await
            .map_err(failed("take a batch"))?;
            // Another coordinator may have been faster.
            if taken.rows_affected() > 0 {
                return Ok(Some(BatchId::from(id)));
            }
        }
        Ok(None)
    }

    /// Keeps a batch for so many more seconds. `None` when it is another's now.
    pub(super) async fn renew(&self, id: &BatchId, seconds: i64) -> Result<Option<Status>, Error> {
        let status: Option<String> = sqlx::query_scalar(
            "UPDATE batches SET lease_expires_at = $3 WHERE id = $1 AND lease_owner = $2 RETURNING status",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(self.clock.unix_seconds().saturating_add(seconds))
        .fetch_optional(&self.database.pool)
        .await
        .map_err(failed("keep a batch"))?;
        Ok(status.and_then(|word| Status::ALL.into_iter().find(|it| it.as_str() == word)))
    }

    /// Gives up every batch that is held, for others to take at once.
    pub(super) async fn release_all(&self) -> Result<(), Error> {
        sqlx::query(
            "UPDATE batches SET lease_owner = NULL, lease_expires_at = 0 WHERE lease_owner = $1",
        )
        .bind(self.runner.as_str())
        .execute(&self.database.pool)
        .await
        .map_err(failed("give batches up"))?;
        Ok(())
    }

    /// A batch that is held; `None` when it is another's now.
    pub(super) async fn load(&self, id: &BatchId) -> Result<Option<BatchRecord>, Error> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = $1 AND lease_owner = $2")
            .bind(id.as_str())
            .bind(self.runner.as_str())
            .fetch_optional(&self.database.pool)
            .await
            .map_err(failed("load a batch"))?;
        row.as_ref().map(BatchRecord::from_row).transpose().map_err(failed("load a batch"))
    }

    /// The input cannot be used: the batch is over.
    pub(super) async fn refuse(&self, id: &BatchId, errors: &[LineError]) -> Result<(), Error> {
        let errors = serde_json::json!(errors).to_string();
        sqlx::query(
            "UPDATE batches SET status = 'failed', failed_at = $3, errors = $4, lease_owner = NULL \
             WHERE id = $1 AND lease_owner = $2 AND status = 'validating'",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(self.clock.unix_seconds())
        .bind(errors)
        .execute(&self.database.pool)
        .await
        .map_err(failed("refuse a batch"))?;
        Ok(())
    }

    /// The input can be used: its requests may be answered. They are written bit by bit, so that nobody waits long for the
    /// database, and count when all are there.
    pub(super) async fn begin(
        &self,
        id: &BatchId,
        lines: &[Line],
        seconds: i64,
    ) -> Result<(), Error> {
        for part in lines.chunks(INSERTED_TOGETHER) {
            let inserted = self.try_insert(id, part, seconds).await;
            if !inserted.map_err(failed("write the requests of a batch"))? {
                return Ok(());
            }
        }
        sqlx::query(
            "UPDATE batches SET status = 'in_progress', in_progress_at = $3, total = $4 \
             WHERE id = $1 AND lease_owner = $2 AND status = 'validating'",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(self.clock.unix_seconds())
        .bind(i64::try_from(lines.len()).unwrap_or(i64::MAX))
        .execute(&self.database.pool)
        .await
        .map_err(failed("begin a batch"))?;
        Ok(())
    }

    /// No more answers: the files of the batch are written next, under these ids.
    pub(super) async fn close(&self, id: &BatchId) -> Result<(), Error> {
        sqlx::query(
            "UPDATE batches SET status = 'finalizing', finalizing_at = $3 \
             WHERE id = $1 AND lease_owner = $2 AND status = 'in_progress'",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(self.clock.unix_seconds())
        .execute(&self.database.pool)
        .await
        .map_err(failed("close a batch"))?;
        Ok(())
    }

    /// Chooses the ids of a batch's files, unless they are chosen; both.
    pub(super) async fn choose_files(&self, id: &BatchId) -> Result<Option<[FileId; 2]>, Error> {
        let row = sqlx::query(
            "UPDATE batches SET output_file_id = COALESCE(output_file_id, $3), \
             error_file_id = COALESCE(error_file_id, $4) \
             WHERE id = $1 AND lease_owner = $2 AND status IN ('finalizing', 'cancelling') \
             RETURNING output_file_id, error_file_id",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(FileId::generate().as_str())
        .bind(FileId::generate().as_str())
        .fetch_optional(&self.database.pool)
        .await
        .map_err(failed("choose the files of a batch"))?;
        let Some(row) = row else { return Ok(None) };
        let id = |column: &str| row.try_get::<String, _>(column).map(FileId::from);
        let ids = id("output_file_id").and_then(|output| Ok([output, id("error_file_id")?]));
        ids.map(Some).map_err(failed("choose the files of a batch"))
    }

    /// The files are written: the batch is over, and they appear.
    pub(super) async fn end(
        &self,
        batch: &BatchRecord,
        status: Status,
        [output, error]: [Option<FileRecord>; 2],
    ) -> Result<bool, Error> {
        self.try_end(batch, status, [output, error]).await.map_err(failed("end a batch"))
    }

    async fn try_end(
        &self,
        batch: &BatchRecord,
        status: Status,
        [output, error]: [Option<FileRecord>; 2],
    ) -> Result<bool, sqlx::Error> {
        let now = self.clock.unix_seconds();
        let at = |wanted| (status == wanted).then_some(now);
        let mut transaction = self.database.pool.begin().await?;
        let ended = sqlx::query(
            "UPDATE batches SET status = $3, completed_at = $4, expired_at = $5, cancelled_at = $6, \
             output_file_id = $7, error_file_id = $8, lease_owner = NULL \
             WHERE id = $1 AND lease_owner = $2 AND status IN ('finalizing', 'cancelling')",
        )
        .bind(batch.id.as_str())
        .bind(self.runner.as_str())
        .bind(status.as_str())
        .bind(at(Status::Completed))
        .bind(at(Status::Expired))
        .bind(at(Status::Cancelled))
        .bind(output.as_ref().map(|file| file.id.as_str()))
        .bind(error.as_ref().map(|file| file.id.as_str()))
        .execute(&mut *transaction)
        .await?;
        if ended.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        for file in [output, error].iter().flatten() {
            insert_file(&mut transaction, file).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Batches that are over and whose requests a crash left.
    pub(super) async fn leftovers(&self) -> Result<Vec<BatchId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM batches WHERE status IN ('failed', 'completed', 'expired', 'cancelled') \
             AND EXISTS (SELECT 1 FROM batch_lines WHERE batch_id = batches.id)",
        )
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("look for what a crash left"))?;
        Ok(ids.into_iter().map(BatchId::from).collect())
    }

    /// How many batches of each status there are.
    pub(super) async fn statuses(&self) -> Result<Vec<(String, i64)>, Error> {
        let rows = sqlx::query("SELECT status, COUNT(*) AS count FROM batches GROUP BY status")
            .fetch_all(&self.database.pool)
            .await
            .map_err(failed("count batches"))?;
        let read = |row: &AnyRow| Ok((row.try_get("status")?, row.try_get("count")?));
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed("count batches"))
    }
}

async fn insert_file(
    transaction: &mut Transaction<'_, Any>,
    file: &FileRecord,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO files (id, key_id, state, purpose, filename, bytes, created_at, expires_at) \
         VALUES ($1, $2, 'ready', $3, $4, $5, $6, $7)",
    )
    .bind(file.id.as_str())
    .bind(file.owner.get())
    .bind(file.purpose.as_str())
    .bind(file.filename.as_str())
    .bind(i64::try_from(file.bytes).unwrap_or(i64::MAX))
    .bind(file.created_at)
    .bind(file.expires_at)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
