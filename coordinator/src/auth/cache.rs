//! Recently checked keys, so that a request does not wait for the disk.

use std::time::Duration;

use indexmap::IndexMap;
use tokio::time::Instant;

use super::account::Account;
use super::record::KeyId;

/// How long a check stays valid, and so how late a change by another process is noticed.
pub(crate) const FRESH: Duration = Duration::from_secs(1);
/// Most keys remembered.
const ENTRIES_MAX: usize = 1024;

/// Accounts by key hash. Holds known keys only: an unknown key is looked up each time.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: IndexMap<[u8; 32], (Account, Instant)>,
}

impl Cache {
    pub(super) fn get(&self, hash: &[u8; 32], now: Instant) -> Option<Account> {
        let (account, checked_at) = self.entries.get(hash)?;
        (now.duration_since(*checked_at) < FRESH).then(|| account.clone())
    }

    pub(super) fn put(&mut self, hash: [u8; 32], account: Account, now: Instant) {
        self.entries.shift_remove(&hash);
        if self.entries.len() >= ENTRIES_MAX {
            // Insertion order is age order, so the first is the stalest.
            self.entries.shift_remove_index(0);
        }
        self.entries.insert(hash, (account, now));
    }

    pub(super) fn forget_key(&mut self, key_id: KeyId) {
        self.entries.retain(|_, (account, _)| account.key_id() != key_id);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
