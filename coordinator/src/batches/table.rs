//! The table `batches`, as clients see it.

use super::Error;
use super::record::{BatchId, BatchRecord, ListBatches};
use crate::auth::KeyId;
use crate::auth::database::Database;
use crate::files::Page;

/// The records of batches. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) database: Database,
}

// === impl Table ===

impl Table {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Batches of a key that are not over.
    pub(super) async fn count_open(&self, owner: KeyId) -> Result<i64, Error> {
        sqlx::query_scalar(
            "SELECT COUNT(*) FROM batches WHERE key_id = $1 \
             AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
        )
        .bind(owner.get())
        .fetch_one(&self.database.pool)
        .await
        .map_err(failed("count batches"))
    }

    /// Keeps a new batch, unless its input was deleted meanwhile.
    pub(super) async fn insert(&self, batch: &BatchRecord) -> Result<bool, Error> {
        let metadata = batch.metadata.as_ref().map(|it| serde_json::Value::from(it.clone()));
        let inserted = sqlx::query(
            "INSERT INTO batches (id, key_id, status, endpoint, input_file_id, metadata, output_expires_after, \
             created_at, expires_at) SELECT $1, $2, $3, $4, id, $6, $7, $8, $9 FROM files \
             WHERE id = $5 AND state = 'ready'",
        )
        .bind(batch.id.as_str())
        .bind(batch.owner.get())
        .bind(batch.status.as_str())
        .bind(batch.endpoint.path())
        .bind(batch.input.as_str())
        .bind(metadata.map(|it| it.to_string()))
        .bind(batch.output_expires_after)
        .bind(batch.times.created)
        .bind(batch.times.expires)
        .execute(&self.database.pool)
        .await
        .map_err(failed("make a batch"))?;
        Ok(inserted.rows_affected() > 0)
    }

    pub(super) async fn list(
        &self,
        owner: KeyId,
        list: &ListBatches,
    ) -> Result<Page<BatchRecord>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM batches WHERE key_id = $1 AND ($2 IS NULL OR id < $3) ORDER BY id DESC LIMIT $4",
        )
        .bind(owner.get())
        .bind(list.after.as_deref())
        .bind(list.after.as_deref())
        .bind(i64::from(list.limit) + 1)
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("list batches"))?;
        let records: Result<Vec<_>, _> = rows.iter().map(BatchRecord::from_row).collect();
        Ok(Page::of(records.map_err(failed("list batches"))?, list.limit))
    }

    pub(super) async fn get(&self, id: &BatchId) -> Result<Option<BatchRecord>, Error> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.database.pool)
            .await
            .map_err(failed("look up a batch"))?;
        row.as_ref().map(BatchRecord::from_row).transpose().map_err(failed("look up a batch"))
    }

    /// Has a batch end early, if its files are not written yet.
    pub(super) async fn cancel(&self, id: &BatchId, now: i64) -> Result<(), Error> {
        sqlx::query(
            "UPDATE batches SET status = 'cancelling', cancelling_at = $2 \
             WHERE id = $1 AND status IN ('validating', 'in_progress')",
        )
        .bind(id.as_str())
        .bind(now)
        .execute(&self.database.pool)
        .await
        .map_err(failed("cancel a batch"))?;
        Ok(())
    }
}

/// Wraps the failure of a statement.
pub(super) fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Database { action, source }
}
