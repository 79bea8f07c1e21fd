//! Who sent a request, and why it may be turned away.

use std::sync::Arc;
use std::time::Duration;

use super::limiter::{LimitKind, OverLimit};
use super::record::{KeyId, KeyLimits, KeyRecord};

/// Shortest wait that is asked for.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Who sent a request: the holder of a key that is good now. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    record: KeyRecord,
    month_tokens: u64,
}

/// Why a request is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No such key, or no more.
    #[error("the API key is unknown or revoked")]
    Unknown,
    /// The key's time is over.
    #[error("the API key has expired")]
    Expired,
    /// The key is switched off.
    #[error("the API key is switched off; please ensure your API key is active")]
    Inactive,
    /// The key is for other models.
    #[error("the API key may not use the model `{model}`; it may use {}", .allowed.join(", "))]
    Model {
        /// As asked for.
        model: String,
        /// Those that it may use.
        allowed: Vec<String>,
    },
    /// The key's tokens of this month are used up.
    #[error("the {limit} tokens that the API key may use per month are used up")]
    Quota {
        /// Tokens per month.
        limit: u64,
        /// Until the next month.
        retry_after: Duration,
    },
    /// A limit for now.
    #[error("{}", over_limit(*.kind, *.limit))]
    Limit {
        /// Which one.
        kind: LimitKind,
        /// Its value.
        limit: u32,
        /// When to try again.
        retry_after: Duration,
    },
}

// === impl Account ===

impl Account {
    /// The holder of a key that has used `month_tokens` this month.
    pub(super) fn new(record: KeyRecord, month_tokens: u64) -> Self {
        Self(Arc::new(Inner { record, month_tokens }))
    }

    /// Number of the key.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.0.record.id
    }

    /// Name of the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.record.terms.name
    }

    /// How much may be used.
    #[must_use]
    pub fn limits(&self) -> &KeyLimits {
        &self.0.record.terms.limits
    }

    /// Ids of the models that may be used; empty for all.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.0.record.terms.models
    }

    /// Tokens used this month, at most a second ago; counted for keys with a monthly limit only.
    #[must_use]
    pub fn month_tokens(&self) -> u64 {
        self.0.month_tokens
    }

    /// Whether a model may be used.
    ///
    /// # Errors
    /// [`Denied::Model`].
    pub fn check_model(&self, model: &str) -> Result<(), Denied> {
        let allowed = self.models();
        if allowed.is_empty() || allowed.iter().any(|allowed| allowed == model) {
            return Ok(());
        }
        Err(Denied::Model { model: model.to_owned(), allowed: allowed.to_vec() })
    }

    pub(super) fn record(&self) -> &KeyRecord {
        &self.0.record
    }
}

// === impl Denied ===

impl Denied {
    /// The `code` of OpenAI's error object.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown | Self::Expired => "invalid_api_key",
            Self::Inactive => "inactive_api_key",
            Self::Model { .. } => "model_not_allowed",
            Self::Quota { .. } => "insufficient_quota",
            Self::Limit { .. } => "rate_limit_exceeded",
        }
    }

    /// When to try again; `None` when that is no use.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota { retry_after, .. } | Self::Limit { retry_after, .. } => Some(*retry_after),
            Self::Unknown | Self::Expired | Self::Inactive | Self::Model { .. } => None,
        }
    }
}

impl From<OverLimit> for Denied {
    fn from(over: OverLimit) -> Self {
        let OverLimit { kind, limit, retry_after } = over;
        let retry_after = retry_after.unwrap_or(RETRY_AFTER_MIN);
        // A client that comes a moment too early is refused again, so whole seconds are rounded up.
        let whole = Duration::from_secs(retry_after.as_secs());
        let retry_after = if whole < retry_after { whole + RETRY_AFTER_MIN } else { whole };
        Self::Limit { kind, limit, retry_after }
    }
}

fn over_limit(kind: LimitKind, limit: u32) -> String {
    match kind {
        LimitKind::Requests => format!("the API key may send {limit} requests per minute"),
        LimitKind::Tokens => format!("the API key may use {limit} tokens per minute"),
        LimitKind::Concurrent => format!("the API key may have {limit} requests at the same time"),
    }
}
