//! What was used, summed up for people who pay or are paid.

use jiff::civil::Date;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::Error;
use super::keys::KeyStore;
use super::ledger::Tokens;
use super::record::KeyId;

/// Which usage is summed up, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// First day, in UTC.
    pub from: Date,
    /// Last day, itself included.
    pub to: Date,
    /// Of this key only.
    pub key_id: Option<KeyId>,
    /// Of this model only.
    pub model: Option<String>,
    /// What a sum is made for.
    pub group_by: GroupBy,
}

/// What a sum is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupBy {
    /// Each day, in order.
    #[default]
    Day,
    /// Each key, in the order of their numbers.
    Key,
    /// Each model, in the order of their ids.
    Model,
}

/// What a sum is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// A day in UTC.
    Day(Date),
    /// A key and its name.
    Key(KeyId, String),
    /// A model.
    Model(String),
}

/// A sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Of what.
    pub group: Group,
    /// Requests that generated something or tried to.
    pub requests: u64,
    /// Their tokens.
    pub tokens: Tokens,
}

/// The columns of sums, and what is summed.
macro_rules! sums {
    ($group:literal, $tables:literal) => {
        concat!(
            "SELECT ",
            $group,
            ", CAST(SUM(usage.requests) AS BIGINT) AS requests, \
             CAST(SUM(usage.prompt_tokens) AS BIGINT) AS prompt, \
             CAST(SUM(usage.cached_tokens) AS BIGINT) AS cached, \
             CAST(SUM(usage.completion_tokens) AS BIGINT) AS completion, \
             CAST(SUM(usage.reasoning_tokens) AS BIGINT) AS reasoning FROM ",
            $tables,
            " WHERE usage.day BETWEEN $1 AND $2 AND (CAST($3 AS BIGINT) IS NULL OR usage.key_id = $3) \
             AND (CAST($4 AS TEXT) IS NULL OR usage.model = $4) GROUP BY 1",
        )
    };
}

impl KeyStore {
    /// Sums up usage. What clients have been told is in it.
    ///
    /// # Errors
    /// [`Error::Query`].
    pub async fn usage(&self, query: &Query) -> Result<Vec<Sum>, Error> {
        let statement = match query.group_by {
            GroupBy::Day => concat!(sums!("usage.day AS day", "usage"), " ORDER BY 1"),
            GroupBy::Key => concat!(
                sums!(
                    "usage.key_id AS key_id, MAX(COALESCE(api_keys.name, '')) AS name",
                    "usage LEFT JOIN api_keys ON api_keys.id = usage.key_id"
                ),
                " ORDER BY 1"
            ),
            GroupBy::Model => concat!(sums!("usage.model AS model", "usage"), " ORDER BY 1"),
        };
        let failed = || self.database().failed("sum up usage");
        let rows = sqlx::query(statement)
            .bind(query.from.to_string())
            .bind(query.to.to_string())
            .bind(query.key_id.map(KeyId::get))
            .bind(query.model.as_deref())
            .fetch_all(&self.database().pool)
            .await
            .map_err(failed())?;
        let sums = rows.iter().map(|row| sum(row, query.group_by));
        sums.collect::<Result<_, _>>().map_err(failed())
    }
}

fn sum(row: &AnyRow, group_by: GroupBy) -> Result<Sum, sqlx::Error> {
    let count = |column: &str| -> Result<u64, sqlx::Error> {
        Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
    };
    let group = match group_by {
        GroupBy::Day => Group::Day(day(row)?),
        GroupBy::Key => Group::Key(KeyId::new(row.try_get("key_id")?), row.try_get("name")?),
        GroupBy::Model => Group::Model(row.try_get("model")?),
    };
    Ok(Sum {
        group,
        requests: count("requests")?,
        tokens: Tokens {
            prompt: count("prompt")?,
            cached: count("cached")?,
            completion: count("completion")?,
            reasoning: count("reasoning")?,
        },
    })
}

fn day(row: &AnyRow) -> Result<Date, sqlx::Error> {
    let day: String = row.try_get("day")?;
    day.parse().map_err(|source: jiff::Error| sqlx::Error::ColumnDecode {
        index: "day".to_owned(),
        source: source.into(),
    })
}

// === impl GroupBy ===

impl GroupBy {
    /// The word in the admin API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Key => "key",
            Self::Model => "model",
        }
    }
}

/// What is no [`GroupBy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be day, key or model")]
pub struct UnknownGroup;

impl std::str::FromStr for GroupBy {
    type Err = UnknownGroup;

    fn from_str(word: &str) -> Result<Self, UnknownGroup> {
        [Self::Day, Self::Key, Self::Model]
            .into_iter()
            .find(|group| group.as_str() == word)
            .ok_or(UnknownGroup)
    }
}
