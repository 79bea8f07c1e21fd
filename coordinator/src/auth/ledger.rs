//! What was used, per key, day in UTC and model.
//!
//! A client is told its usage only after that is committed, so whatever a client was told is in the ledger, even if the
//! process is killed in between. Commits are shared: while one is on its way, what comes in is added up for the next, so
//! that a request waits for two commits at most and the database does one at a time. What is added up is a sum per key, day
//! and model, and so is bounded however long the database is away.
//!
//! A commit that fails is tried again until it succeeds. Batches are numbered, and a number is committed with its batch:
//! one whose commit succeeded without our hearing of it is not counted twice.

mod writer;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::civil::Date;
use tokio::sync::{Notify, watch};

use super::clock::Clock;
use super::keys::KeyStore;
use super::record::KeyId;
pub use writer::Writer;
pub(crate) use writer::add;

#[cfg(test)]
mod tests;

/// How long a client waits for its usage to be durable.
pub const DURABLE_WITHIN: Duration = Duration::from_secs(10);

/// Where usage is recorded. Cheap to clone; needs its [`Writer`] to run.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Shared>);

/// What one request used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Who pays.
    pub key_id: KeyId,
    /// Id of the model.
    pub model: Arc<str>,
    /// How much.
    pub tokens: Tokens,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of prompts.
    pub prompt: u64,
    /// Of prompts, and found in a cache.
    pub cached: u64,
    /// Generated.
    pub completion: u64,
    /// Generated, and thoughts.
    pub reasoning: u64,
}

/// Why usage is not known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database does not answer; recording it is still tried.
    #[error("the usage could not be recorded within {} s", DURABLE_WITHIN.as_secs())]
    Late,
    /// The writer has ended.
    #[error("the usage was not recorded: the server stops")]
    Closed,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    filled: Notify,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    /// What the next commit takes.
    batch: Batch,
    is_closed: bool,
}

#[derive(Debug)]
struct Batch {
    /// Ordered, so that two coordinators lock the rows of PostgreSQL in the same order.
    rows: BTreeMap<RowKey, Row>,
    is_durable: watch::Sender<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    key_id: KeyId,
    day: Date,
    model: Arc<str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    requests: u64,
    tokens: Tokens,
}

// === impl Ledger ===

impl Ledger {
    /// The ledger beside these keys, and the task that writes it.
    #[must_use]
    pub fn new(keys: &KeyStore) -> (Self, Writer) {
        let state = State { batch: Batch::new(), is_closed: false };
        let clock = keys.clock().clone();
        let shared = Arc::new(Shared { state: Mutex::new(state), filled: Notify::new(), clock });
        (Self(Arc::clone(&shared)), Writer::new(shared, keys.database().clone()))
    }

    /// Records what a request used. The future resolves once that is durable; dropping it changes nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn charge(&self, usage: Usage) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let added = self.add(usage);
        async move {
            let mut is_durable = added?;
            let durable = is_durable.wait_for(|durable| *durable);
            match tokio::time::timeout(DURABLE_WITHIN, durable).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(Error::Closed),
                Err(_) => Err(Error::Late),
            }
        }
    }

    /// Records what a request used that nobody waits for.
    pub fn record(&self, usage: Usage) {
        let (key, tokens) = (usage.key_id, usage.tokens);
        if let Err(error) = self.add(usage) {
            tracing::error!(key.id = key.get(), ?tokens, %error, "usage is lost");
        }
    }

    fn add(&self, usage: Usage) -> Result<watch::Receiver<bool>, Error> {
        let Usage { key_id, model, tokens } = usage;
        let key = RowKey { key_id, day: self.0.clock.today(), model };
        let is_durable = {
            let mut state = self.0.state();
            if state.is_closed {
                return Err(Error::Closed);
            }
            state.batch.rows.entry(key).or_default().add(&tokens);
            state.batch.is_durable.subscribe()
        };
        self.0.filled.notify_one();
        Ok(is_durable)
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Sums are whole after every statement, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Batch ===

impl Batch {
    fn new() -> Self {
        Self { rows: BTreeMap::new(), is_durable: watch::channel(false).0 }
    }
}

// === impl Row ===

impl Row {
    fn add(&mut self, tokens: &Tokens) {
        self.requests += 1;
        self.tokens.prompt += tokens.prompt;
        self.tokens.cached += tokens.cached;
        self.tokens.completion += tokens.completion;
        self.tokens.reasoning += tokens.reasoning;
    }
}

// === impl Tokens ===

impl Tokens {
    /// Prompt and completion; the others are parts of these.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}
