//! The record of who did what to the keys: events of the target `audit`. Never a key, nor what it was used for.

use std::net::SocketAddr;

use super::KeyId;

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A holder of the admin key, and where the request came from.
    AdminKey(Option<SocketAddr>),
    /// Somebody at the command line, with access to the database, by the number of the system's user.
    CommandLine(u32),
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A key was made.
    CreateKey,
    /// A key was changed, switched on or off.
    UpdateKey,
    /// A key was made invalid for good.
    RevokeKey,
    /// All keys were listed.
    ListKeys,
    /// One key was looked at.
    ReadKey,
    /// What was used was summed up.
    ReadUsage,
    /// Something else was asked for.
    Other,
}

/// One deed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// By whom.
    pub actor: Actor,
    /// What.
    pub action: Action,
    /// To which key, if one is known.
    pub key: Option<KeyId>,
    /// Fields that were changed.
    pub fields: Vec<&'static str>,
    /// `ok`, or the code of the error.
    pub outcome: &'static str,
}

/// Outcome of what was done.
pub const OK: &str = "ok";
/// Outcome of what was not, where the reason has no code.
pub const FAILED: &str = "failed";

// === impl Entry ===

impl Entry {
    /// Writes the line. The id of a request is in the span around it.
    pub fn log(&self) {
        let Self { actor, action, key, fields, outcome } = self;
        let (by, peer, uid) = match actor {
            Actor::AdminKey(peer) => ("admin key", *peer, None),
            Actor::CommandLine(uid) => ("cli", None, Some(*uid)),
        };
        tracing::info!(
            target: "audit",
            by,
            peer = peer.map(tracing::field::display),
            uid,
            action = action.as_str(),
            key.id = key.map(KeyId::get),
            fields = (!fields.is_empty()).then(|| fields.join(",")),
            outcome,
            "audit"
        );
    }
}

// === impl Action ===

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::CreateKey => "create_key",
            Self::UpdateKey => "update_key",
            Self::RevokeKey => "revoke_key",
            Self::ListKeys => "list_keys",
            Self::ReadKey => "read_key",
            Self::ReadUsage => "read_usage",
            Self::Other => "other",
        }
    }
}
