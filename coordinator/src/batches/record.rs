//! What a client is told of a batch.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::auth::KeyId;
use crate::auth::ledger::Tokens;
use crate::files::FileId;

/// Id of a batch, `batch_` and 32 hex digits; later ids are greater.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(String);

/// A batch. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRecord {
    /// Its id.
    pub id: BatchId,
    /// The key that made it, and pays.
    pub owner: KeyId,
    /// How far it is.
    pub status: Status,
    /// What all its requests ask for.
    pub endpoint: Endpoint,
    /// The file with its requests.
    pub input: FileId,
    /// The file with answers, chosen before it is written.
    pub output: Option<FileId>,
    /// The file with failures, chosen before it is written.
    pub error: Option<FileId>,
    /// Seconds that these are kept; `None` for the server's default.
    pub output_expires_after: Option<i64>,
    /// As sent.
    pub metadata: Option<Map<String, Value>>,
    /// What is wrong with the input.
    pub errors: Vec<LineError>,
    /// How many requests have come to what.
    pub counts: Counts,
    /// What the answers used.
    pub usage: Tokens,
    /// When what happened.
    pub times: Times,
}

/// How many requests of a batch have come to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them; 0 until they are checked.
    pub total: u64,
    /// Answered.
    pub completed: u64,
    /// Refused or failed.
    pub failed: u64,
}

/// When what happened to a batch, in Unix seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// It was made.
    pub created: i64,
    /// It ends then, finished or not.
    pub expires: i64,
    /// Its requests began to be answered.
    pub in_progress: Option<i64>,
    /// Its files began to be written.
    pub finalizing: Option<i64>,
    /// It was completed.
    pub completed: Option<i64>,
    /// Its input was refused.
    pub failed: Option<i64>,
    /// Its time was over.
    pub expired: Option<i64>,
    /// Its client wanted its end.
    pub cancelling: Option<i64>,
    /// Its client got it.
    pub cancelled: Option<i64>,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Its input is to be checked.
    Validating,
    /// Its input was refused.
    Failed,
    /// Its requests are answered.
    InProgress,
    /// Its files are written.
    Finalizing,
    /// It is over.
    Completed,
    /// It is over; some requests have no answer.
    Expired,
    /// It shall end early.
    Cancelling,
    /// It ended early.
    Cancelled,
}

/// What the requests of a batch ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
}

/// Something that is wrong with the input of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field, where there is one.
    pub param: Option<String>,
    /// The line, from 1; `None` for the file as a whole.
    pub line: Option<u64>,
}

/// What a client wants of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct NewBatch {
    /// The file with its requests.
    pub input: FileId,
    /// What all of them ask for.
    pub endpoint: Endpoint,
    /// The client's own.
    pub metadata: Option<Map<String, Value>>,
    /// Seconds that its files are kept; `None` for the server's default.
    pub output_expires_after: Option<i64>,
}

/// Which batches are wanted; the latest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListBatches {
    /// Most batches of the page.
    pub limit: u32,
    /// The last one of the page before.
    pub after: Option<String>,
}

// === impl BatchId ===

impl BatchId {
    fn generate() -> Self {
        Self(format!("batch_{}", Uuid::now_v7().simple()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part that no other id has.
    #[must_use]
    pub fn unique(&self) -> &str {
        self.0.split_once('_').map_or(&self.0, |(_, unique)| unique)
    }
}

impl From<String> for BatchId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Status ===

impl Status {
    /// All of them, in the order of a batch's life.
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The word of OpenAI's API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing happens to the batch any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling => false,
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ChatCompletions, Self::Completions, Self::Responses];

    /// Its path.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
        }
    }

    /// The endpoint at a path.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

// === impl BatchRecord ===

impl BatchRecord {
    /// A batch that nothing has happened to.
    #[must_use]
    pub(super) fn new(owner: KeyId, new: NewBatch, now: i64, expires: i64) -> Self {
        Self {
            id: BatchId::generate(),
            owner,
            status: Status::Validating,
            endpoint: new.endpoint,
            input: new.input,
            output: None,
            error: None,
            output_expires_after: new.output_expires_after,
            metadata: new.metadata,
            errors: Vec::new(),
            counts: Counts::default(),
            usage: Tokens::default(),
            times: Times { created: now, expires, ..Times::default() },
        }
    }

    /// Reads a row that has all columns of the table.
    pub(super) fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let word = |column: &str| row.try_get::<String, _>(column);
        let count = |column: &str| -> Result<u64, sqlx::Error> {
            Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
        };
        let status = word("status")?;
        let endpoint = word("endpoint")?;
        let file = |column: &str| -> Result<Option<FileId>, sqlx::Error> {
            Ok(row.try_get::<Option<String>, _>(column)?.map(FileId::from))
        };
        Ok(Self {
            id: BatchId(word("id")?),
            owner: KeyId::new(row.try_get("key_id")?),
            status: Status::ALL
                .into_iter()
                .find(|it| it.as_str() == status)
                .ok_or_else(|| unreadable("status", format!("{status:?} is no status")))?,
            endpoint: Endpoint::parse(&endpoint)
                .ok_or_else(|| unreadable("endpoint", format!("{endpoint:?} is no endpoint")))?,
            input: FileId::from(word("input_file_id")?),
            output: file("output_file_id")?,
            error: file("error_file_id")?,
            output_expires_after: row.try_get("output_expires_after")?,
            metadata: json(row, "metadata")?,
            errors: json(row, "errors")?.unwrap_or_default(),
            counts: Counts {
                total: count("total")?,
                completed: count("completed")?,
                failed: count("failed")?,
            },
            usage: Tokens {
                prompt: count("prompt_tokens")?,
                cached: count("cached_tokens")?,
                completion: count("completion_tokens")?,
                reasoning: count("reasoning_tokens")?,
            },
            times: Times::from_row(row)?,
        })
    }
}

impl Times {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            created: row.try_get("created_at")?,
            expires: row.try_get("expires_at")?,
            in_progress: row.try_get("in_progress_at")?,
            finalizing: row.try_get("finalizing_at")?,
            completed: row.try_get("completed_at")?,
            failed: row.try_get("failed_at")?,
            expired: row.try_get("expired_at")?,
            cancelling: row.try_get("cancelling_at")?,
            cancelled: row.try_get("cancelled_at")?,
        })
    }
}

fn json<T: serde::de::DeserializeOwned>(
    row: &AnyRow,
    column: &str,
) -> Result<Option<T>, sqlx::Error> {
    let Some(text) = row.try_get::<Option<String>, _>(column)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| unreadable(column, error))
}

fn unreadable(
    column: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }
}
