//! A request's way past the door: whose is it, may it begin, what is it charged.
//!
//! ```text
//! authenticate  -> Account   the key is good
//! admit         -> Lease     within the limits; held until the answer is over
//! Lease::begin  -> Charge    the model is allowed, the prompt's tokens fit
//! Charge        -> ledger    every token that was generated is on the bill, however the request ends
//! ```
//!
//! A batch's requests have a [`Tab`] in the ledger's place: their usage is recorded together with their answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::counter;
use tokio::time::Instant;

use super::account::{Account, Denied};
use super::failures::{Door, Failures};
use super::keys::KeyStore;
use super::ledger::{self, Ledger, Tokens};
use super::limiter::{Allowances, LimitKind, Limiter, Usage};
use super::record::KeyLimits;
use super::{AdmitError, clock::Clock};
use crate::metric_definitions as names;
use crate::scheduler::Priority;

#[cfg(test)]
mod tests;

/// Keys, limits and bills of one coordinator. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Accounts {
    keys: KeyStore,
    limiter: Arc<Limiter>,
    ledger: Ledger,
    clock: Clock,
    failures: Failures,
}

/// The right to one request at a time. The request is over when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    account: Account,
    /// What holds for the request: the account's, or none.
    limits: KeyLimits,
    usage: Arc<Usage>,
    book: Book,
}

/// Where a request's usage is recorded.
#[derive(Debug)]
enum Book {
    Ledger(Ledger),
    Tab(Tab),
}

/// Usage that whoever admitted the request records, instead of the ledger's own task.
#[derive(Clone, Debug, Default)]
pub struct Tab(Arc<Mutex<Vec<ledger::Usage>>>);

/// The bill of one request. Dropped before [`Self::finish`], it still charges what was counted so far.
#[derive(Debug)]
pub struct Charge {
    lease: Lease,
    model: Arc<str>,
    /// `None` once it is in the ledger, or withdrawn.
    tokens: Option<Tokens>,
}

// === impl Accounts ===

impl Accounts {
    /// Admits the holders of `keys` and charges them, as long as the writer runs.
    #[must_use]
    pub fn new(keys: KeyStore) -> (Self, ledger::Writer) {
        let (ledger, writer) = Ledger::new(&keys);
        let clock = keys.clock().clone();
        (
            Self { keys, limiter: Arc::default(), ledger, clock, failures: Failures::default() },
            writer,
        )
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &KeyStore {
        &self.keys
    }

    /// The bills.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Who was not let in.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Who holds this key.
    ///
    /// # Errors
    /// [`Denied::Unknown`], [`Denied::Expired`], [`Denied::Inactive`], or the database's.
    pub async fn authenticate(&self, bearer: &str) -> Result<Account, AdmitError> {
        self.keys.check(bearer).await
    }

    /// As [`Self::authenticate`], for whoever stands at a door; failures are noted.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub async fn authenticate_at(
        &self,
        door: Door,
        peer: Option<SocketAddr>,
        bearer: &str,
    ) -> Result<Account, AdmitError> {
        let account = self.keys.check(bearer).await;
        if let Err(AdmitError::Denied(denied)) = &account {
            self.failures.note_denied(door, denied, peer);
        }
        account
    }

    /// Lets a request begin that will compute something.
    ///
    /// # Errors
    /// [`Denied::Quota`], [`Denied::Limit`].
    pub fn admit(&self, account: &Account) -> Result<Lease, Denied> {
        self.check_quota(account)?;
        let limits = *account.limits();
        let now = Instant::now();
        let usage = self.limiter.usage(account.key_id(), now);
        usage.enter(&limits, now).map_err(|over| counted(over.into()))?;
        let book = Book::Ledger(self.ledger.clone());
        Ok(Lease(Arc::new(Inner { account: account.clone(), limits, usage, book })))
    }

    /// Lets a request of a batch begin. Limits per minute and at once are not for it: it uses what others leave. What it
    /// used is on the tab when its answer is complete.
    ///
    /// # Errors
    /// [`Denied::Quota`].
    pub fn admit_batch(&self, account: &Account) -> Result<(Lease, Tab), Denied> {
        self.check_quota(account)?;
        let tab = Tab::default();
        let inner = Inner {
            account: account.clone(),
            limits: KeyLimits::default(),
            usage: Arc::new(Usage::new(Instant::now())),
            book: Book::Tab(tab.clone()),
        };
        Ok((Lease(Arc::new(inner)), tab))
    }

    fn check_quota(&self, account: &Account) -> Result<(), Denied> {
        match account.limits().monthly_tokens {
            Some(limit) if account.month_tokens() >= limit.get() => {
                let left = self.clock.seconds_left_of_month();
                let retry_after = std::time::Duration::from_secs(left);
                Err(counted(Denied::Quota { limit: limit.get(), retry_after }))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What a key may still use.
    #[must_use]
    pub fn allowances(&self, account: &Account) -> Allowances {
        let limits = account.limits();
        if limits.requests_per_minute.is_none() && limits.tokens_per_minute.is_none() {
            return Allowances::default();
        }
        let now = Instant::now();
        self.limiter.usage(account.key_id(), now).allowances(limits, now)
    }
}

// === impl Lease ===

impl Lease {
    /// Who sent the request.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.0.account
    }

    /// Whom the request goes before.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match &self.0.book {
            Book::Ledger(_) => Priority::Interactive,
            Book::Tab(_) => Priority::Batch,
        }
    }

    /// Opens the bill of the request, once its prompt is counted and before it is submitted. `cached` is the part of
    /// `prompt` that need not be computed; it counts towards the limits all the same.
    ///
    /// # Errors
    /// [`Denied::Model`], [`Denied::Limit`]; nothing is charged then.
    pub fn begin(&self, model: &str, prompt: u64, cached: u64) -> Result<Charge, Denied> {
        let Inner { account, limits, usage, .. } = self.0.as_ref();
        account.check_model(model)?;
        usage.take_tokens(limits, prompt, Instant::now()).map_err(|over| counted(over.into()))?;
        let tokens = Tokens { prompt, cached, ..Tokens::default() };
        Ok(Charge { lease: self.clone(), model: model.into(), tokens: Some(tokens) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.usage.leave();
    }
}

// === impl Tab ===

impl Tab {
    /// What is on the tab; it is empty afterwards.
    #[must_use]
    pub fn take(&self) -> Vec<ledger::Usage> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, usage: ledger::Usage) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(usage);
    }
}

// === impl Charge ===

impl Charge {
    /// Tokens were generated. `reasoning` of them are thoughts.
    pub fn generated(&mut self, tokens: u64, reasoning: u64) {
        let Some(so_far) = &mut self.tokens else { return };
        so_far.completion += tokens;
        so_far.reasoning += reasoning;
        let Inner { limits, usage, .. } = self.lease.0.as_ref();
        usage.charge_tokens(limits, tokens, Instant::now());
    }

    /// What the client will be told, which replaces what was counted: some of it is known at the end only.
    pub fn settle(&mut self, tokens: Tokens) {
        let Some(so_far) = &mut self.tokens else { return };
        let (before, after) = (so_far.total(), tokens.total());
        *so_far = tokens;
        let Inner { limits, usage, .. } = self.lease.0.as_ref();
        if after > before {
            usage.charge_tokens(limits, after - before, Instant::now());
        } else {
            usage.refund_tokens(before - after);
        }
    }

    /// What is on the bill so far.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.tokens.unwrap_or_default()
    }

    /// Closes the bill. Returns once it is durable, or on its tab; only then the client may be told its usage.
    ///
    /// # Errors
    /// [`ledger::Error`]. The bill is still tried to be recorded then, but the client should be told of an error.
    pub async fn finish(mut self) -> Result<(), ledger::Error> {
        let Some(usage) = self.take() else { return Ok(()) };
        match &self.lease.0.book {
            Book::Ledger(ledger) => ledger.charge(usage).await,
            Book::Tab(tab) => {
                tab.add(usage);
                Ok(())
            }
        }
    }

    /// Tears up the bill of a request that never reached the engine.
    pub fn withdraw(mut self) {
        if let Some(tokens) = self.tokens.take() {
            self.lease.0.usage.refund_tokens(tokens.total());
        }
    }

    fn take(&mut self) -> Option<ledger::Usage> {
        let tokens = self.tokens.take()?;
        let (key_id, model) = (self.lease.account().key_id(), Arc::clone(&self.model));
        Some(ledger::Usage { key_id, model, tokens })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(usage) = self.take() {
            match &self.lease.0.book {
                Book::Ledger(ledger) => ledger.record(usage),
                Book::Tab(tab) => tab.add(usage),
            }
        }
    }
}

/// Counts a refusal that a limit caused.
fn counted(denied: Denied) -> Denied {
    let reason = match &denied {
        Denied::Quota { .. } => names::REASON_QUOTA,
        Denied::Limit { kind: LimitKind::Requests, .. } => names::REASON_REQUESTS,
        Denied::Limit { kind: LimitKind::Tokens, .. } => names::REASON_TOKENS,
        Denied::Limit { kind: LimitKind::Concurrent, .. } => names::REASON_CONCURRENT,
        Denied::Unknown | Denied::Expired | Denied::Inactive | Denied::Model { .. } => {
            return denied;
        }
    };
    counter!(names::RATE_LIMITED_REQUESTS_TOTAL, names::REASON => reason).increment(1);
    denied
}
