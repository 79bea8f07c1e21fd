//! Structured output: what an answer must look like, as a grammar over token ids.
//!
//! - [`grammar`]: grammars for JSON Schema, regular expressions and tool calls, as text that can travel.
//! - [`vocabulary`]: a model's tokens, against which such text is compiled.
//! - [`matcher`]: a compiled grammar at some point of an answer, which knows the tokens that may follow.
//!
//! The coordinator compiles a request's grammar once to refuse what cannot be served; the worker compiles it again and
//! asks it before every sampled token. Both keep the grammars last compiled. Everything is bounded by counts and not by time, so that the same grammar gives
//! the same result on every machine: the size of a text, the states of a lexer, the work for one mask.
//! The grammars themselves are llguidance's (Lark dialect).
#![forbid(unsafe_code)]

pub mod grammar;
pub mod matcher;
pub mod vocabulary;

#[cfg(test)]
mod testing;

pub use grammar::{Grammar, ParallelCalls, Tool, ToolUse};
pub use matcher::{Mask, Matcher};
pub use vocabulary::Vocabulary;

/// Why a grammar is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The tokenizer is of another kind than those of the DeepSeek-V4 family.
    #[error("the tokenizer cannot be used for structured output: {0}")]
    Tokenizer(String),
    /// A schema, regular expression or grammar is larger or deeper than is served.
    #[error("it has {actual} {unit}, at most {most} are served")]
    TooLarge {
        /// What is counted.
        unit: &'static str,
        /// How many there are.
        actual: usize,
        /// How many there may be.
        most: usize,
    },
    /// The grammar does not compile.
    #[error("{0}")]
    Refused(String),
    /// The answer cannot go on: the grammar needs more work for one token than is allowed, or allows no token.
    #[error("{0}")]
    Stuck(String),
}
