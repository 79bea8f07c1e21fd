//! The form of a key.

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};

/// What our keys begin with, so that scanners for leaked secrets can find them.
const PREFIX: &str = "sk-sy-";
/// Random bytes of a key.
const RANDOM_BYTES: usize = 24;
/// Characters of a key that a list may show.
const SHOWN_CHARS: usize = 10;
/// Longest key that an operator may choose.
const CHOSEN_LEN_MAX: usize = 256;

/// A key as its holder sends it. Not `Display`, so that it is not logged by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct PlaintextKey(String);

impl PlaintextKey {
    /// A new random key.
    ///
    /// # Panics
    /// When the operating system has no random numbers to give, in which case no secret can be made at all.
    pub(super) fn generate() -> Self {
        let mut bytes = [0; RANDOM_BYTES];
        #[expect(clippy::expect_used, reason = "without the system's randomness no key is safe")]
        OsRng.try_fill_bytes(&mut bytes).expect("the operating system provides random bytes");
        Self(format!("{PREFIX}{}", hex::encode(bytes)))
    }

    /// Takes a key that someone chose or sent.
    pub(super) fn parse(key: &str) -> Result<Self, &'static str> {
        if key.is_empty() || key.len() > CHOSEN_LEN_MAX {
            return Err("must have 1 to 256 characters");
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must consist of visible ASCII characters");
        }
        Ok(Self(key.to_owned()))
    }

    /// The key itself, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// The shown part: never more than half of a short, chosen key.
    pub(super) fn prefix(&self) -> &str {
        let shown = SHOWN_CHARS.min(self.0.len() / 2);
        self.0.get(..shown).unwrap_or_default()
    }
}

impl std::fmt::Debug for PlaintextKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlaintextKey({}…)", self.prefix())
    }
}
