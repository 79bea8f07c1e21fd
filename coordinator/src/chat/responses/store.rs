//! Responses that clients may come back for.
//!
//! They are kept in memory, so a restart forgets them, and within [`Bounds`]: by default 1000 responses, 64 MiB and an
//! hour. The oldest go first; one that is still being made stays. Each key sees its own only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Account;

#[cfg(test)]
mod tests;

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most responses.
    pub count_max: usize,
    /// Most bytes, of responses and their conversations as JSON.
    pub bytes_max: usize,
    /// Longest time from when a response was first kept.
    pub age_max: Duration,
}

/// Whose response it is: the number of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(i64);

/// A kept response as JSON, and the items of the conversation that it answers. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The response object.
    pub response: Bytes,
    /// The items, from the first of the conversation.
    pub input: Bytes,
}

/// The kept responses, and the tasks that make some of them.
#[derive(Debug)]
pub struct Store {
    bounds: Bounds,
    inner: Mutex<Inner>,
    tasks: TaskTracker,
}

/// Why a kept response cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is another key's, gone, or never was.
    #[error(
        "there is no response {id:?}; it is another key's, was deleted, or was too old to be kept"
    )]
    NotFound {
        /// As asked for.
        id: String,
    },
    /// The response to be continued is not there.
    #[error(
        "there is no response {id:?} to continue; send its items along with `input` instead of `previous_response_id`"
    )]
    PreviousNotFound {
        /// As asked for.
        id: String,
    },
    /// The response to be continued has no end.
    #[error("the response {id:?} is {status}, so it cannot be continued")]
    PreviousUnfinished {
        /// As asked for.
        id: String,
        /// Its status.
        status: String,
    },
    /// Its client waits for it.
    #[error("the response {id:?} was not made in the background, so it cannot be cancelled")]
    NotBackground {
        /// As asked for.
        id: String,
    },
    /// Everything kept is still being made.
    #[error(
        "{count_max} responses are being made in the background, which is this server's limit; retry later"
    )]
    Full {
        /// The limit.
        count_max: usize,
    },
}

#[derive(Debug, Default)]
struct Inner {
    /// By id, the oldest first.
    entries: IndexMap<String, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    since: Instant,
    kept: Kept,
    origin: Origin,
}

/// How a response is made.
#[derive(Debug)]
enum Origin {
    /// With its client waiting; it is complete.
    Foreground,
    /// Without, by a task that stops when this is cancelled.
    Running(CancellationToken),
    /// Without, and over.
    Ended,
}

// === impl Bounds ===

impl Default for Bounds {
    fn default() -> Self {
        Self { count_max: 1000, bytes_max: 64 << 20, age_max: Duration::from_secs(3600) }
    }
}

// === impl Owner ===

impl From<&Account> for Owner {
    fn from(account: &Account) -> Self {
        Self(account.key_id().get())
    }
}

// === impl Kept ===

impl Kept {
    /// A response and its conversation.
    #[must_use]
    pub fn new(response: &Value, input: &[Value]) -> Self {
        // JSON values can be written whatever they are.
        let input = serde_json::to_vec(input).unwrap_or_default();
        Self { response: response.to_string().into(), input: input.into() }
    }

    fn bytes(&self) -> usize {
        self.response.len() + self.input.len()
    }

    /// Items of the conversation that the response answers.
    #[must_use]
    pub fn input_items(&self) -> Vec<Value> {
        items(&self.input)
    }

    fn response(&self) -> Value {
        // We wrote it, so it can be read.
        serde_json::from_slice(&self.response).unwrap_or_default()
    }

    fn output_items(&self) -> Vec<Value> {
        self.response()
            .get_mut("output")
            .and_then(Value::as_array_mut)
            .map(std::mem::take)
            .unwrap_or_default()
    }
}

fn items(json: &[u8]) -> Vec<Value> {
    serde_json::from_slice(json).unwrap_or_default()
}

// === impl Store ===

impl Default for Store {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default(), tasks: TaskTracker::new() }
    }

    /// Keeps a response whose client has waited for it.
    pub fn keep(&self, owner: Owner, id: String, kept: Kept) {
        let mut inner = self.lock();
        inner.insert(id, Entry::new(owner, kept, Origin::Foreground));
        inner.evict(&self.bounds);
    }

    /// Runs a task that makes a response without its client, until it ends or is cancelled. What it returns is kept.
    ///
    /// # Errors
    /// [`Error::Full`]; the task was not begun.
    pub fn spawn(
        self: &Arc<Self>,
        owner: Owner,
        id: String,
        begun: Kept,
        task: impl Future<Output = Value> + Send + 'static,
    ) -> Result<(), Error> {
        let stop = CancellationToken::new();
        let mut inner = self.lock();
        inner.insert(id.clone(), Entry::new(owner, begun, Origin::Running(stop.clone())));
        inner.evict(&self.bounds);
        if inner.entries.len() > self.bounds.count_max {
            inner.remove(&id);
            return Err(Error::Full { count_max: self.bounds.count_max });
        }
        drop(inner);
        let store = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(response) = stop.run_until_cancelled(task).await {
                store.finish(&id, &response);
            }
        });
        Ok(())
    }

    /// Keeps what a task made, unless it was cancelled or deleted meanwhile.
    fn finish(&self, id: &str, response: &Value) {
        let mut inner = self.lock();
        if inner.entries.get(id).is_some_and(Entry::is_running) {
            inner.end(id, response);
            inner.evict(&self.bounds);
        }
    }

    /// A kept response.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, owner: Owner, id: &str) -> Result<Kept, Error> {
        Ok(self.lock().entry(owner, id)?.kept.clone())
    }

    /// All items of a conversation up to and with a response.
    ///
    /// # Errors
    /// [`Error::PreviousNotFound`], [`Error::PreviousUnfinished`].
    pub fn history(&self, owner: Owner, id: &str) -> Result<Vec<Value>, Error> {
        let kept =
            self.get(owner, id).map_err(|_| Error::PreviousNotFound { id: id.to_owned() })?;
        let status = kept.response()["status"].as_str().unwrap_or_default().to_owned();
        if !["completed", "incomplete"].contains(&status.as_str()) {
            return Err(Error::PreviousUnfinished { id: id.to_owned(), status });
        }
        let mut items = kept.input_items();
        items.extend(kept.output_items());
        Ok(items)
    }

    /// An item that this server made.
    #[must_use]
    pub fn output_item(&self, owner: Owner, item_id: &str) -> Option<Value> {
        let kept = self.get(owner, super::items::response_of(item_id)?).ok()?;
        kept.output_items().into_iter().find(|item| item["id"] == item_id)
    }

    /// Stops the making of a response, which is then `cancelled`. One that is over stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotBackground`].
    pub fn cancel(&self, owner: Owner, id: &str) -> Result<Kept, Error> {
        let mut inner = self.lock();
        let entry = inner.entry(owner, id)?;
        match &entry.origin {
            Origin::Foreground => return Err(Error::NotBackground { id: id.to_owned() }),
            Origin::Ended => {}
            Origin::Running(stop) => {
                stop.cancel();
                let mut response = entry.kept.response();
                response["status"] = "cancelled".into();
                inner.end(id, &response);
            }
        }
        Ok(inner.entry(owner, id)?.kept.clone())
    }

    /// Forgets a response, and stops making it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn delete(&self, owner: Owner, id: &str) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.entry(owner, id)?;
        inner.remove(id);
        Ok(())
    }

    /// Waits until no task makes a response. More may be begun meanwhile.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The entries that are not too old.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.expire(self.bounds.age_max);
        inner
    }
}

// === impl Inner ===

impl Inner {
    fn entry(&self, owner: Owner, id: &str) -> Result<&Entry, Error> {
        let entry = self.entries.get(id).filter(|entry| entry.owner == owner);
        entry.ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    fn insert(&mut self, id: String, entry: Entry) {
        self.bytes += entry.kept.bytes();
        self.entries.insert(id, entry);
    }

    /// Takes a response out, and stops the task that makes it.
    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.entries.shift_remove(id) {
            self.bytes -= entry.kept.bytes();
            if let Origin::Running(stop) = entry.origin {
                stop.cancel();
            }
        }
    }

    fn end(&mut self, id: &str, response: &Value) {
        if let Some(entry) = self.entries.get_mut(id) {
            self.bytes -= entry.kept.bytes();
            entry.kept.response = response.to_string().into();
            entry.origin = Origin::Ended;
            self.bytes += entry.kept.bytes();
        }
    }

    fn expire(&mut self, age_max: Duration) {
        let is_old = |entry: &Entry| !entry.is_running() && entry.since.elapsed() >= age_max;
        let old: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_old(entry))
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            self.remove(&id);
        }
    }

    /// Forgets the oldest until the rest is within bounds, or still being made.
    fn evict(&mut self, bounds: &Bounds) {
        while self.entries.len() > bounds.count_max || self.bytes > bounds.bytes_max {
            let oldest = self.entries.iter().find(|(_, entry)| !entry.is_running());
            let Some(id) = oldest.map(|(id, _)| id.clone()) else { return };
            self.remove(&id);
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(owner: Owner, kept: Kept, origin: Origin) -> Self {
        Self { owner, since: Instant::now(), kept, origin }
    }

    fn is_running(&self) -> bool {
        matches!(self.origin, Origin::Running(_))
    }
}
