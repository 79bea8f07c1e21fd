//! The table `files`.

use sqlx::any::AnyRow;

use super::Error;
use super::record::{FileId, FileRecord, ListFiles, Page, Purpose};
use crate::auth::KeyId;
use crate::auth::database::Database;

/// Files swept at once.
const SWEEP_MAX: i64 = 1000;

/// The records of files. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Table {
    database: Database,
}

/// What both orders of a list have in common.
macro_rules! list {
    ($compare:literal, $order:literal) => {
        concat!(
            "SELECT * FROM files WHERE key_id = $1 AND state = 'ready' AND (expires_at IS NULL OR expires_at > $2) \
             AND ($3 IS NULL OR purpose = $4) AND ($5 IS NULL OR id ",
            $compare,
            " $6) ORDER BY id ",
            $order,
            " LIMIT $7"
        )
    };
}

// === impl Table ===

impl Table {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Files of a key, also those being written.
    pub(super) async fn count(&self, owner: KeyId) -> Result<i64, Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM files WHERE key_id = $1 AND state <> 'deleted'")
            .bind(owner.get())
            .fetch_one(&self.database.pool)
            .await
            .map_err(failed("count files"))
    }

    pub(super) async fn begin(&self, id: &FileId, owner: KeyId, now: i64) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO files (id, key_id, state, purpose, filename, bytes, created_at) \
             VALUES ($1, $2, 'pending', $3, '', 0, $4)",
        )
        .bind(id.as_str())
        .bind(owner.get())
        .bind(Purpose::Batch.as_str())
        .bind(now)
        .execute(&self.database.pool)
        .await
        .map_err(failed("begin a file"))?;
        Ok(())
    }

    pub(super) async fn finish(&self, record: &FileRecord) -> Result<(), Error> {
        let finished = sqlx::query(
            "UPDATE files SET state = 'ready', purpose = $2, filename = $3, bytes = $4, created_at = $5, \
             expires_at = $6 WHERE id = $1 AND state = 'pending'",
        )
        .bind(record.id.as_str())
        .bind(record.purpose.as_str())
        .bind(record.filename.as_str())
        .bind(i64::try_from(record.bytes).unwrap_or(i64::MAX))
        .bind(record.created_at)
        .bind(record.expires_at)
        .execute(&self.database.pool)
        .await
        .map_err(failed("finish a file"))?;
        // It took so long that it was swept.
        if finished.rows_affected() == 0 {
            return Err(Error::NotFound { id: record.id.clone() });
        }
        Ok(())
    }

    pub(super) async fn list(
        &self,
        owner: KeyId,
        list: &ListFiles,
        now: i64,
    ) -> Result<Page<FileRecord>, Error> {
        let statement = if list.newest_first { list!("<", "DESC") } else { list!(">", "ASC") };
        let purpose = list.purpose.map(Purpose::as_str);
        let rows = sqlx::query(statement)
            .bind(owner.get())
            .bind(now)
            .bind(purpose)
            .bind(purpose)
            .bind(list.after.as_deref())
            .bind(list.after.as_deref())
            .bind(i64::from(list.limit) + 1)
            .fetch_all(&self.database.pool)
            .await
            .map_err(failed("list files"))?;
        let records: Result<Vec<_>, _> = rows.iter().map(FileRecord::from_row).collect();
        Ok(Page::of(records.map_err(failed("list files"))?, list.limit))
    }

    pub(super) async fn get(
        &self,
        owner: KeyId,
        id: &FileId,
        now: i64,
    ) -> Result<Option<FileRecord>, Error> {
        let row: Option<AnyRow> = sqlx::query(
            "SELECT * FROM files WHERE id = $1 AND key_id = $2 AND state = 'ready' \
             AND (expires_at IS NULL OR expires_at > $3)",
        )
        .bind(id.as_str())
        .bind(owner.get())
        .bind(now)
        .fetch_optional(&self.database.pool)
        .await
        .map_err(failed("look up a file"))?;
        row.as_ref().map(FileRecord::from_row).transpose().map_err(failed("look up a file"))
    }

    /// Marks a file as one to be deleted, unless a batch reads it.
    pub(super) async fn mark_deleted(&self, id: &FileId) -> Result<bool, Error> {
        let marked = sqlx::query(
            "UPDATE files SET state = 'deleted' WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM batches \
             WHERE input_file_id = $2 AND status IN ('validating', 'in_progress'))",
        )
        .bind(id.as_str())
        .bind(id.as_str())
        .execute(&self.database.pool)
        .await
        .map_err(failed("delete a file"))?;
        Ok(marked.rows_affected() > 0)
    }

    /// Forgets a file whose contents are gone.
    pub(super) async fn forget(&self, id: &FileId) -> Result<(), Error> {
        sqlx::query("DELETE FROM files WHERE id = $1")
            .bind(id.as_str())
            .execute(&self.database.pool)
            .await
            .map_err(failed("forget a file"))?;
        Ok(())
    }

    /// Files that are deleted, expired, or have been pending since before `pending_since`.
    pub(super) async fn to_sweep(
        &self,
        now: i64,
        pending_since: i64,
    ) -> Result<Vec<FileId>, Error> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM files WHERE (state = 'deleted' OR expires_at <= $1 \
             OR (state = 'pending' AND created_at < $2)) AND NOT EXISTS (SELECT 1 FROM batches \
             WHERE input_file_id = files.id AND status IN ('validating', 'in_progress')) ORDER BY id LIMIT $3",
        )
        .bind(now)
        .bind(pending_since)
        .bind(SWEEP_MAX)
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("look for files to delete"))?;
        Ok(ids.into_iter().map(FileId::from).collect())
    }
}

fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |source| Error::Database { action, source }
}
