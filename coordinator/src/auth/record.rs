//! What is kept of a key: who it is for, until when, and how much its holder may use.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use sqlx::Row as _;
use sqlx::any::AnyRow;

/// Number of a key. The database counts them up; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(i64);

/// A stored key, without the key. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Number of the key.
    pub id: KeyId,
    /// First characters of the key.
    pub prefix: String,
    /// Creation.
    pub created_at: i64,
    /// When it was made invalid for good.
    pub revoked_at: Option<i64>,
    /// Since when it is switched off.
    pub disabled_at: Option<i64>,
    /// What its maker chose.
    pub terms: Terms,
}

/// What the maker of a key chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What the key is for.
    pub name: String,
    /// From when on it is refused, in Unix seconds. `None`: never.
    pub expires_at: Option<i64>,
    /// Ids of the models that it may ask for. Empty: all.
    pub models: Vec<String>,
    /// How much its holder may use.
    pub limits: KeyLimits,
}

/// How much the holder of a key may use. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests per minute; as many may come at once after a minute's rest.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers per minute.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    pub concurrent_requests: Option<NonZeroU32>,
    /// Tokens of prompts and answers per calendar month in UTC.
    pub monthly_tokens: Option<NonZeroU64>,
}

/// What a key is good for at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It is accepted.
    Active,
    /// It is switched off, and can be switched on again.
    Disabled,
    /// Its time is over.
    Expired,
    /// It was made invalid for good.
    Revoked,
}

/// A change of terms. The default keeps everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChange {
    /// Another name.
    pub name: Option<String>,
    /// Switched on or off.
    pub active: Option<bool>,
    /// Other models; an empty list is all.
    pub models: Option<Vec<String>>,
    /// See [`Terms::expires_at`].
    pub expires_at: Change<i64>,
    /// See [`KeyLimits::requests_per_minute`].
    pub requests_per_minute: Change<NonZeroU32>,
    /// See [`KeyLimits::tokens_per_minute`].
    pub tokens_per_minute: Change<NonZeroU32>,
    /// See [`KeyLimits::concurrent_requests`].
    pub concurrent_requests: Change<NonZeroU32>,
    /// See [`KeyLimits::monthly_tokens`].
    pub monthly_tokens: Change<NonZeroU64>,
}

/// A change of a value that may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// As before.
    #[default]
    Keep,
    /// Absent from now on.
    Clear,
    /// This from now on.
    Set(T),
}

// === impl KeyChange ===

impl KeyChange {
    /// Names of what it touches, for the log.
    #[must_use]
    pub fn fields(&self) -> Vec<&'static str> {
        let touched = [
            ("name", self.name.is_some()),
            ("active", self.active.is_some()),
            ("models", self.models.is_some()),
            ("expires_at", self.expires_at != Change::Keep),
            ("requests_per_minute", self.requests_per_minute != Change::Keep),
            ("tokens_per_minute", self.tokens_per_minute != Change::Keep),
            ("concurrent_requests", self.concurrent_requests != Change::Keep),
            ("monthly_tokens", self.monthly_tokens != Change::Keep),
        ];
        touched.into_iter().filter_map(|(name, touched)| touched.then_some(name)).collect()
    }
}

// === impl KeyId ===

impl KeyId {
    /// The key with this number.
    #[must_use]
    pub const fn new(id: i64) -> Self {
        Self(id)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl KeyRecord ===

impl KeyRecord {
    /// What the key is good for. What cannot be undone comes first.
    #[must_use]
    pub fn state(&self, unix_seconds: i64) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.terms.expires_at.is_some_and(|at| at <= unix_seconds) {
            KeyState::Expired
        } else if self.disabled_at.is_some() {
            KeyState::Disabled
        } else {
            KeyState::Active
        }
    }

    /// Reads a row that has all columns of the table.
    pub(super) fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let count = |column: &str| -> Result<Option<u64>, sqlx::Error> {
            Ok(row.try_get::<Option<i64>, _>(column)?.and_then(|count| u64::try_from(count).ok()))
        };
        let small = |column: &str| -> Result<Option<NonZeroU32>, sqlx::Error> {
            let narrow = |count| u32::try_from(count).unwrap_or(u32::MAX);
            Ok(count(column)?.map(narrow).and_then(NonZeroU32::new))
        };
        let models: String = row.try_get("models")?;
        Ok(Self {
            id: KeyId(row.try_get("id")?),
            prefix: row.try_get("prefix")?,
            created_at: row.try_get("created_at")?,
            revoked_at: row.try_get("revoked_at")?,
            disabled_at: row.try_get("disabled_at")?,
            terms: Terms {
                name: row.try_get("name")?,
                expires_at: row.try_get("expires_at")?,
                models: models_from_json(&models)?,
                limits: KeyLimits {
                    requests_per_minute: small("requests_per_minute")?,
                    tokens_per_minute: small("tokens_per_minute")?,
                    concurrent_requests: small("concurrent_requests")?,
                    monthly_tokens: count("monthly_tokens")?.and_then(NonZeroU64::new),
                },
            },
        })
    }
}

/// The column `models`.
pub(super) fn models_to_json(models: &[String]) -> String {
    serde_json::Value::from(models).to_string()
}

fn models_from_json(json: &str) -> Result<Vec<String>, sqlx::Error> {
    serde_json::from_str(json).map_err(|source| sqlx::Error::ColumnDecode {
        index: "models".to_owned(),
        source: source.into(),
    })
}

// === impl KeyState ===

impl KeyState {
    /// The word in lists and in the admin API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// === impl Change ===

impl<T> Change<T> {
    /// For `NULLIF(COALESCE($n, column), 0)`: nothing keeps, zero clears.
    pub(super) fn into_sql(self, number: impl FnOnce(T) -> i64) -> Option<i64> {
        match self {
            Self::Keep => None,
            Self::Clear => Some(0),
            Self::Set(value) => Some(number(value)),
        }
    }
}

/// A count as the databases keep it.
pub(super) fn saturating(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
