//! JSON Schemas: compiled within their bounds, and followed for some tokens.
//!
//! A schema is refused, or there is an answer to begin with. Every token that a mask allows is accepted, and a grammar
//! compiled again agrees, because coordinator and workers each compile it. An answer that is complete is JSON.

use serde::de::IgnoredAny;
use serde_json::Value;
use switchyard_grammar::{Error, Grammar, Vocabulary};

/// Tokens of an answer, at most: most faults show in the first few, and a model cannot be made to stop.
const TOKENS_MAX: usize = 48;

/// The demo model's vocabulary.
#[derive(Debug)]
pub struct Schemas {
    vocabulary: Vocabulary,
    eos: u32,
}

// === impl Schemas ===

impl Schemas {
    /// Reads the demo model's files.
    #[must_use]
    pub fn new() -> Self {
        let model = crate::model();
        let (vocab_size, eos) = (model.config().vocab_size, model.eos_token_id());
        let vocabulary = Vocabulary::new(model.tokenizer_json(), vocab_size, eos)
            .expect("the demo model's tokenizer is of the family's kind");
        Self { vocabulary, eos }
    }

    /// Follows the answer to a schema.
    ///
    /// # Panics
    /// When the grammar contradicts itself.
    pub fn check(&self, data: &[u8]) {
        let Ok(schema) = serde_json::from_slice::<Value>(data) else { return };
        let Ok(grammar) = Grammar::json_schema(&schema) else { return };
        let mut matcher = match self.vocabulary.compile(&grammar) {
            Ok(matcher) => matcher,
            Err(error) => {
                assert_ne!(error.to_string(), "", "a refusal of {schema} without a reason");
                return;
            }
        };
        let mut again = self.vocabulary.compile(&grammar).expect("it has compiled before");
        let mut dice = Dice::new(data);
        let mut answer = Vec::new();
        while answer.len() < TOKENS_MAX && !matcher.is_complete() {
            let mask = match matcher.mask() {
                Ok(mask) => mask,
                Err(Error::Stuck(_)) => {
                    again.mask().expect_err("the same grammar got further at the second time");
                    return;
                }
                Err(error) => panic!("{error:?} of a grammar that has compiled"),
            };
            assert_eq!(again.mask().as_ref(), Ok(&mask), "masks differ behind {answer:?}");
            let allowed: Vec<u32> = mask.tokens().collect();
            // Half of the time, so that answers come to an end.
            let token = if mask.allows(self.eos) && dice.roll(2) == 0 {
                self.eos
            } else {
                allowed[dice.roll(allowed.len())]
            };
            let accepted = matcher.accept(token);
            assert_eq!(accepted, again.accept(token), "token {token} behind {answer:?}");
            if accepted.is_err() {
                // It may cost too much from here on, but then it says so.
                matcher.mask().expect_err("a matcher is stuck for ever");
                return;
            }
            if token == self.eos {
                break;
            }
            answer.push(token);
        }
        let is_whole = answer.len() < TOKENS_MAX;
        let text = self.vocabulary.decode(&answer);
        if is_whole && let Err(error) = serde_json::from_slice::<IgnoredAny>(&text) {
            panic!("{error}: {:?} for {schema}", String::from_utf8_lossy(&text));
        }
    }
}

impl Default for Schemas {
    fn default() -> Self {
        Self::new()
    }
}

/// Numbers that follow from an input: the same input is always followed in the same way.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(data: &[u8]) -> Self {
        // FNV-1a; never 0, from which the generator would not move.
        let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        Self(data.iter().fold(0xcbf2_9ce4_8422_2325, hash) | 1)
    }

    /// A number below `sides`, which is not 0.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        // Xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}
