//! A grammar at some point of an answer.

use std::fmt;

use crate::Error;
use crate::vocabulary::summary;

/// A compiled grammar and the tokens it has seen.
pub struct Matcher {
    matcher: llguidance::Matcher,
    num_words: usize,
}

/// The tokens that may follow: bit `id % 32` of word `id / 32`. At least one is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Vec<u32>);

// === impl Matcher ===

impl Matcher {
    /// Checks that something may follow.
    pub(crate) fn new(matcher: llguidance::Matcher, num_words: usize) -> Result<Self, Error> {
        let mut new = Self { matcher, num_words };
        match new.mask() {
            Ok(_) => Ok(new),
            Err(Error::Stuck(problem)) => Err(Error::Refused(problem)),
            Err(error) => Err(error),
        }
    }

    /// The tokens that may follow; only the end of the answer once it is complete.
    ///
    /// # Errors
    /// [`Error::Stuck`], now and from then on.
    pub fn mask(&mut self) -> Result<Mask, Error> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| stuck(&error))?;
        let mut words = allowed.as_slice().to_vec();
        words.resize(self.num_words, 0);
        Ok(Mask(words))
    }

    /// Takes the next token of the answer. Once it is complete, whatever follows is passed over.
    ///
    /// # Errors
    /// [`Error::Stuck`] for a token that may not follow, now and from then on.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        if self.is_complete() {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| stuck(&error))
    }

    /// Whether nothing but the end of the answer may follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.matcher.is_error() && self.matcher.is_stopped()
    }
}

impl Clone for Matcher {
    /// A matcher at the same point that goes on by itself, with what has been worked out so far.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), num_words: self.num_words }
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

fn stuck(error: &impl ToString) -> Error {
    Error::Stuck(summary(error))
}

// === impl Mask ===

impl Mask {
    /// The words, one bit for each token of the vocabulary.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    /// Every token of a vocabulary but `forbidden`.
    #[must_use]
    pub fn all_but(vocab_size: usize, forbidden: &[u32]) -> Self {
        let mut words = vec![u32::MAX; vocab_size.div_ceil(32)];
        if let (Some(last), used @ 1..) = (words.last_mut(), vocab_size % 32) {
            *last = (1 << used) - 1;
        }
        for &token in forbidden {
            if let Some(word) = words.get_mut(token as usize / 32) {
                *word &= !(1 << (token % 32));
            }
        }
        Self(words)
    }

    /// Whether a token may follow.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// The tokens that may follow, by ascending id.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.0).flat_map(|(index, &word)| {
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 32 + bit)
        })
    }
}
