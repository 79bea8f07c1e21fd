//! A model's tokens as byte strings, and the compiler of grammars over them.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser, token_bytes_from_tokenizer_json};
use lru::LruCache;
use serde_json::Value;

use crate::{Error, Grammar, Matcher};

#[cfg(test)]
mod tests;

/// Bounds on one grammar. Figures in comments are what they amount to on one core of a server of 2023.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    // 20 ms to compile.
    initial_lexer_fuel: 1_000_000,
    // 7 ms and 1 ms for one mask.
    step_lexer_fuel: 100_000,
    step_max_items: 20_000,
    // 100 MB.
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    // Errors go to clients: no dumps of the parser's state.
    verbose_errors: false,
};

/// Grammars that are kept compiled. Services ask for the same few schemas again and again; one costs some milliseconds to
/// compile and some megabytes to keep, a copy of it a fraction.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// A model's tokens. Cheap to share, expensive to make: some tenths of a second for 130,000 tokens.
pub struct Vocabulary {
    factory: ParserFactory,
    num_words: usize,
    /// The grammars last compiled, by their text, before their first token.
    kept: Mutex<LruCache<String, Matcher>>,
}

// === impl Vocabulary ===

impl Vocabulary {
    /// Reads a `tokenizer.json` for a model with logits for `vocab_size` tokens. Added tokens are markup: no text of a
    /// grammar ever matches them, only their ids do.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn new(tokenizer_json: &[u8], vocab_size: usize, eos: u32) -> Result<Self, Error> {
        let json: Value = serde_json::from_slice(tokenizer_json)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let mut words = token_bytes_from_tokenizer_json(&json)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        if words.len() > vocab_size {
            let problem = format!("it has {} tokens, the model {vocab_size}", words.len());
            return Err(Error::Tokenizer(problem));
        }
        words.resize(vocab_size, Vec::new());
        let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        for token in added {
            let id = token["id"].as_u64().and_then(|id| usize::try_from(id).ok());
            let word = id.and_then(|id| words.get_mut(id));
            if let Some(word) = word
                && word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER)
            {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let info = TokRxInfo::new(u32::try_from(vocab_size).unwrap_or(u32::MAX), eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|error| Error::Tokenizer(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        let kept = Mutex::new(LruCache::new(KEPT_MAX));
        Ok(Self { factory, num_words: vocab_size.div_ceil(32), kept })
    }

    /// Compiles a grammar and finds its first mask, so that what cannot even begin is refused.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Refused`], [`Error::Stuck`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Matcher, Error> {
        if let Some(matcher) = self.kept().get(grammar.as_str()) {
            return Ok(matcher.clone());
        }
        grammar.check_size()?;
        let lark = TopLevelGrammar::from_lark(grammar.as_str().to_owned());
        let parser: Result<TokenParser, _> = self.factory.create_parser(lark);
        let parser = parser.map_err(|error| Error::Refused(summary(&error)))?;
        let matcher = Matcher::new(llguidance::Matcher::new(Ok(parser)), self.num_words)?;
        self.kept().put(grammar.as_str().to_owned(), matcher.clone());
        Ok(matcher)
    }

    /// Not held while a grammar is compiled.
    fn kept(&self) -> MutexGuard<'_, LruCache<String, Matcher>> {
        // A panic leaves whole entries behind.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that tokens stand for; markup is written out.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        self.factory.tok_env().tok_trie().decode(tokens)
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("num_words", &self.num_words).finish_non_exhaustive()
    }
}

/// An error's own words, without the grammar that llguidance may quote below them.
pub(crate) fn summary(error: &impl ToString) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    // An error in a regular expression: the expression, a mark below it, and then what is wrong.
    match lines.find_map(|line| line.trim().strip_prefix("error: ")) {
        Some(cause) => format!("{} {cause}", first.trim_end()),
        None => first.to_owned(),
    }
}
