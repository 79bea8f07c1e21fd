//! How one request of a batch is answered. The routes do it; tests script it.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Map, Value};

use super::record::Endpoint;
use crate::auth::KeyId;
use crate::auth::ledger::Usage;

/// Answers requests as their routes would, behind those that somebody waits for.
pub trait Perform: Debug + Send + Sync + 'static {
    /// Answers one request. Dropped before its end, it has done nothing that counts.
    fn perform(&self, call: Call) -> BoxFuture<'_, Performed>;
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// The key that asks, and pays.
    pub owner: KeyId,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// The body.
    pub body: Map<String, Value>,
}

/// What a request came to.
#[derive(Clone, Debug)]
pub enum Performed {
    /// An answer, or a refusal that would be the same again.
    Answered(Answered),
    /// A failure that may not happen again.
    Failed(Answered),
    /// Nothing, for now.
    Later(Duration),
}

/// A response, and what it is to be charged.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
    /// What the answer used. It is not in the ledger yet.
    pub usage: Vec<Usage>,
}

// === impl Answered ===

impl Answered {
    /// Whether it goes into the output file, not the error file.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}
