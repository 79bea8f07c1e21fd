//! Why a model's files cannot be served. Each message names the file.

use std::path::PathBuf;

use switchyard_moe::config;

use super::CONFIG_FILE;

/// Why a model's files cannot be served. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` is no V4 configuration.
    #[error("{} cannot be served", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: config::Error,
    },
    /// `tokenizer.json` or `generation_config.json` has another form.
    #[error("{} cannot be parsed", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tokenizer belongs to another model.
    #[error("{} does not fit {CONFIG_FILE} beside it: {mismatch}", .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What differs.
        mismatch: Mismatch,
    },
    /// The limit asked for is not within the model's.
    #[error(
        "model {model}: max_model_len {asked} is not within 2..={limit}, the limit of its {CONFIG_FILE}"
    )]
    MaxModelLen {
        /// The model.
        model: String,
        /// As asked for.
        asked: u32,
        /// The model's own.
        limit: u32,
    },
}

/// How a tokenizer and a configuration contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The model has no embedding for a token.
    #[error("token {token:?} has id {id}, but vocab_size is {vocab_size}")]
    OutOfVocabulary {
        /// The token with the highest id.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// The prompt template writes a token that the tokenizer does not have.
    #[error("the special token {0:?} is missing from its added_tokens")]
    MissingSpecial(&'static str),
    /// A special token has another id than the model was trained with.
    #[error("{token:?} has id {id}, but {field} is {expected}")]
    SpecialId {
        /// The token.
        token: &'static str,
        /// Its id in the tokenizer.
        id: u32,
        /// The field of the configuration.
        field: &'static str,
        /// Its value.
        expected: u32,
    },
    /// Text would be lost between the client and the model.
    #[error("{0:?} does not survive encoding and decoding")]
    Lossy(char),
}
