//! What is known of a file.

use std::fmt;

use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::auth::KeyId;

/// Id of a file, `file-` and 32 hex digits; later ids are greater.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(String);

/// A file, without what is in it. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// Its id.
    pub id: FileId,
    /// The key that it belongs to.
    pub owner: KeyId,
    /// What it is for.
    pub purpose: Purpose,
    /// As its client calls it.
    pub filename: String,
    /// Its length.
    pub bytes: u64,
    /// Creation.
    pub created_at: i64,
    /// From when on it is gone. `None`: never.
    pub expires_at: Option<i64>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Input of batches.
    Batch,
    /// Written by a batch.
    BatchOutput,
}

/// What the maker of a file says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// What it is for.
    pub purpose: Purpose,
    /// Its name.
    pub filename: String,
    /// Seconds that it is kept; `None` for the server's default.
    pub expires_after: Option<i64>,
}

/// Which files are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFiles {
    /// Those for this only.
    pub purpose: Option<Purpose>,
    /// Most files of the page.
    pub limit: u32,
    /// The latest first.
    pub newest_first: bool,
    /// The last one of the page before.
    pub after: Option<String>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// Whether there is more behind it.
    pub has_more: bool,
}

// === impl FileId ===

impl FileId {
    /// A new id.
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("file-{}", Uuid::now_v7().simple()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for FileId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Purpose ===

impl Purpose {
    /// The word of OpenAI's API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }

    /// What a word stands for.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Batch, Self::BatchOutput].into_iter().find(|purpose| purpose.as_str() == word)
    }
}

// === impl FileRecord ===

impl FileRecord {
    /// Reads a row that has all columns of the table.
    pub(super) fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let purpose: String = row.try_get("purpose")?;
        let purpose = Purpose::parse(&purpose).ok_or_else(|| sqlx::Error::ColumnDecode {
            index: "purpose".to_owned(),
            source: format!("{purpose:?} is no purpose").into(),
        })?;
        Ok(Self {
            id: FileId(row.try_get("id")?),
            owner: KeyId::new(row.try_get("key_id")?),
            purpose,
            filename: row.try_get("filename")?,
            bytes: u64::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or(0),
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
        })
    }
}

// === impl Page ===

impl<T> Page<T> {
    /// The page of `limit` items out of what was found, which has one more if there is more.
    pub(crate) fn of(mut items: Vec<T>, limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = items.len() > limit;
        items.truncate(limit);
        Self { items, has_more }
    }
}
