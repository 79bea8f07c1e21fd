//! The table `batch_lines`: requests of batches, and what they came to.

use sqlx::any::AnyRow;
use sqlx::{Any, Row as _, Transaction};

use super::Journal;
use crate::auth::ledger;
use crate::batches::Error;
use crate::batches::perform::Answered;
use crate::batches::record::BatchId;
use crate::batches::table::failed;

/// Requests that are looked up, or forgotten, at once.
const PAGE_LINES: i64 = 256;
/// Requests that are written in one transaction.
pub(super) const INSERTED_TOGETHER: usize = 1000;
/// Requests in one statement; databases bound its parameters.
const ROWS_PER_STATEMENT: usize = 100;

/// A request of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::batches) struct Line {
    /// From 1.
    pub(in crate::batches) number: i64,
    pub(in crate::batches) custom_id: String,
    /// Where it is in the input file.
    pub(in crate::batches) begins_at: u64,
    pub(in crate::batches) length: u64,
}

/// What a request came to, in words of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::batches) enum Outcome {
    Completed,
    Failed,
}

/// A request with its result, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::batches) struct Ended {
    pub(in crate::batches) number: i64,
    pub(in crate::batches) custom_id: String,
    pub(in crate::batches) result: Option<String>,
}

// === impl Journal ===

impl Journal {
    /// Writes some requests, unless the batch is no longer ours to begin. Those that are there, from before a crash, are
    /// the same.
    pub(super) async fn try_insert(
        &self,
        id: &BatchId,
        lines: &[Line],
        seconds: i64,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = self.database.pool.begin().await?;
        let held = sqlx::query(
            "UPDATE batches SET lease_expires_at = $3 WHERE id = $1 AND lease_owner = $2 AND status = 'validating'",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(self.clock.unix_seconds().saturating_add(seconds))
        .execute(&mut *transaction)
        .await?;
        if held.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        for part in lines.chunks(ROWS_PER_STATEMENT) {
            let statement = insert_statement(part.len());
            let mut query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.as_str());
            for line in part {
                query = query
                    .bind(line.number)
                    .bind(line.custom_id.as_str())
                    .bind(i64::try_from(line.begins_at).unwrap_or(i64::MAX))
                    .bind(i64::try_from(line.length).unwrap_or(i64::MAX));
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Requests behind line `after` that have no result, in the order of the file; not all at once.
    pub(in crate::batches) async fn open_lines(
        &self,
        id: &BatchId,
        after: i64,
    ) -> Result<Vec<Line>, Error> {
        let rows = sqlx::query(
            "SELECT line, custom_id, begins_at, length FROM batch_lines \
             WHERE batch_id = $1 AND line > $2 AND outcome IS NULL ORDER BY line LIMIT $3",
        )
        .bind(id.as_str())
        .bind(after)
        .bind(PAGE_LINES)
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("look for requests"))?;
        rows.iter()
            .map(Line::from_row)
            .collect::<Result<_, _>>()
            .map_err(failed("look for requests"))
    }

    /// The result of a request, its place in the batch's counts, and what the key pays: all of it or nothing. Nothing
    /// when the request has a result already, or the batch is no longer ours to answer.
    pub(in crate::batches) async fn record(
        &self,
        id: &BatchId,
        line: &Line,
        answered: &Answered,
        result: &str,
    ) -> Result<bool, Error> {
        // It is never closed.
        let _turn = self.turn.acquire().await;
        let recorded = self.try_record(id, line, answered, result).await;
        recorded.map_err(failed("record an answer"))
    }

    async fn try_record(
        &self,
        id: &BatchId,
        line: &Line,
        answered: &Answered,
        result: &str,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = self.database.pool.begin().await?;
        let is_new = self.count(&mut transaction, id, answered).await?
            && put_result(&mut transaction, id, line.number, answered, result).await?;
        if !is_new {
            transaction.rollback().await?;
            return Ok(false);
        }
        for usage in &answered.usage {
            ledger::add(&mut transaction, usage, self.clock.today()).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn count(
        &self,
        transaction: &mut Transaction<'_, Any>,
        id: &BatchId,
        answered: &Answered,
    ) -> Result<bool, sqlx::Error> {
        let success = i64::from(answered.is_success());
        let sum = |part: fn(&ledger::Tokens) -> u64| {
            let tokens = answered.usage.iter().map(|usage| part(&usage.tokens)).sum::<u64>();
            i64::try_from(tokens).unwrap_or(i64::MAX)
        };
        let counted = sqlx::query(
            "UPDATE batches SET completed = completed + $3, failed = failed + $4, \
             prompt_tokens = prompt_tokens + $5, cached_tokens = cached_tokens + $6, \
             completion_tokens = completion_tokens + $7, reasoning_tokens = reasoning_tokens + $8 \
             WHERE id = $1 AND lease_owner = $2 AND status = 'in_progress'",
        )
        .bind(id.as_str())
        .bind(self.runner.as_str())
        .bind(success)
        .bind(1 - success)
        .bind(sum(|tokens| tokens.prompt))
        .bind(sum(|tokens| tokens.cached))
        .bind(sum(|tokens| tokens.completion))
        .bind(sum(|tokens| tokens.reasoning))
        .execute(&mut **transaction)
        .await?;
        Ok(counted.rows_affected() > 0)
    }

    /// Requests behind line `after` that came to `outcome`, or to nothing, in the order of the file; not all at once.
    pub(in crate::batches) async fn ended_lines(
        &self,
        id: &BatchId,
        outcome: Option<Outcome>,
        after: i64,
    ) -> Result<Vec<Ended>, Error> {
        let rows = sqlx::query(
            "SELECT line, custom_id, result FROM batch_lines \
             WHERE batch_id = $1 AND line > $2 AND COALESCE(outcome, '') = $3 ORDER BY line LIMIT $4",
        )
        .bind(id.as_str())
        .bind(after)
        .bind(outcome.map_or("", Outcome::as_str))
        .bind(PAGE_LINES)
        .fetch_all(&self.database.pool)
        .await
        .map_err(failed("look for answers"))?;
        rows.iter()
            .map(Ended::from_row)
            .collect::<Result<_, _>>()
            .map_err(failed("look for answers"))
    }

    /// Forgets the requests of a batch that is over, bit by bit.
    pub(in crate::batches) async fn forget_lines(&self, id: &BatchId) -> Result<(), Error> {
        loop {
            let forgotten = sqlx::query(
                "DELETE FROM batch_lines WHERE batch_id = $1 AND line IN \
                 (SELECT line FROM batch_lines WHERE batch_id = $2 ORDER BY line LIMIT $3)",
            )
            .bind(id.as_str())
            .bind(id.as_str())
            .bind(PAGE_LINES)
            .execute(&self.database.pool)
            .await
            .map_err(failed("forget the requests of a batch"))?;
            if forgotten.rows_affected() == 0 {
                return Ok(());
            }
        }
    }
}

/// Inserts so many requests; `$1` is their batch.
fn insert_statement(num_rows: usize) -> String {
    let row = |row: usize| {
        let [a, b, c, d] = [2, 3, 4, 5].map(|column| row * 4 + column);
        format!("($1, ${a}, ${b}, ${c}, ${d})")
    };
    let rows: Vec<_> = (0..num_rows).map(row).collect();
    format!(
        "INSERT INTO batch_lines (batch_id, line, custom_id, begins_at, length) VALUES {} \
         ON CONFLICT (batch_id, line) DO NOTHING",
        rows.join(", ")
    )
}

async fn put_result(
    transaction: &mut Transaction<'_, Any>,
    id: &BatchId,
    line: i64,
    answered: &Answered,
    result: &str,
) -> Result<bool, sqlx::Error> {
    let outcome = if answered.is_success() { Outcome::Completed } else { Outcome::Failed };
    let put = sqlx::query(
        "UPDATE batch_lines SET outcome = $3, result = $4 WHERE batch_id = $1 AND line = $2 AND outcome IS NULL",
    )
    .bind(id.as_str())
    .bind(line)
    .bind(outcome.as_str())
    .bind(result)
    .execute(&mut **transaction)
    .await?;
    Ok(put.rows_affected() > 0)
}

// === impl Line ===

impl Line {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let position = |column: &str| -> Result<u64, sqlx::Error> {
            Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
        };
        Ok(Self {
            number: row.try_get("line")?,
            custom_id: row.try_get("custom_id")?,
            begins_at: position("begins_at")?,
            length: position("length")?,
        })
    }
}

// === impl Ended ===

impl Ended {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            number: row.try_get("line")?,
            custom_id: row.try_get("custom_id")?,
            result: row.try_get("result")?,
        })
    }
}

// === impl Outcome ===

impl Outcome {
    /// The word of the table, and of metrics.
    pub(in crate::batches) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}
