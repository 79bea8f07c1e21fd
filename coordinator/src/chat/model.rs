//! A served model's files: configuration, tokenizer, defaults. All checked against each other before anything starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use deepseek_recipe_core::conversation::Conversation;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_encoding::dsv4::DeepseekV4Encoding;
use deepseek_recipe_encoding::{
    PromptEncoding as _, PromptTokenizer, RenderedPrompt, TokenizerEncoder as _,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use switchyard_moe::config::{self, ModelConfig};
use tokenizers::Tokenizer;

use crate::options::{ModelOptions, Numerics};

#[cfg(test)]
mod tests;

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Tokens that a rendered V4 prompt or a V4 answer may contain.
const SPECIAL_TOKENS: [SpecialToken; 8] = [
    SpecialToken::Bos,
    SpecialToken::Eos,
    SpecialToken::User,
    SpecialToken::Assistant,
    SpecialToken::ThinkingStart,
    SpecialToken::ThinkingEnd,
    SpecialToken::LatestReminder,
    SpecialToken::Dsml,
];

/// A model as the client APIs know it.
pub struct Model {
    id: String,
    created: u64,
    config: ModelConfig,
    context_length: u32,
    default_thinking: bool,
    numerics: Numerics,
    system_fingerprint: String,
    tokenizer: Arc<Tokenizer>,
    prompt_tokenizer: PromptTokenizer,
    /// Most bytes of text that one token stands for.
    token_bytes_max: usize,
    encoding: DeepseekV4Encoding,
}

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

/// The part of `generation_config.json` that we read. The rest belongs to other programs.
#[derive(Default, Deserialize)]
struct GenerationConfig {
    /// Whether requests that do not say think. Ours, not a field of transformers.
    default_thinking: Option<bool>,
}

// === impl Model ===

impl Model {
    /// Reads and checks a model's files.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(options: &ModelOptions) -> Result<Self, Error> {
        let config_path = options.dir.join(CONFIG_FILE);
        let tokenizer_path = options.dir.join(TOKENIZER_FILE);
        let config_bytes = read(&config_path)?;
        let tokenizer_bytes = read(&tokenizer_path)?;
        let config = ModelConfig::from_json(&String::from_utf8_lossy(&config_bytes))
            .map_err(|source| Error::Config { path: config_path.clone(), source })?;
        let tokenizer = load_tokenizer(&tokenizer_path, &tokenizer_bytes)?;
        let prompt_tokenizer = PromptTokenizer::new(&tokenizer);
        check(&tokenizer, &prompt_tokenizer, &config)
            .map_err(|mismatch| Error::Tokenizer { path: tokenizer_path, mismatch })?;
        let generation = generation_config(&options.dir.join(GENERATION_CONFIG_FILE))?;
        Ok(Self {
            id: options.id.clone(),
            created: modified(&config_path),
            context_length: context_length(options, &config)?,
            default_thinking: options
                .default_thinking
                .or(generation.default_thinking)
                .unwrap_or(true),
            numerics: options.numerics,
            system_fingerprint: system_fingerprint(
                &config_bytes,
                &tokenizer_bytes,
                options.numerics,
            ),
            config,
            token_bytes_max: token_bytes_max(&tokenizer),
            tokenizer: Arc::new(tokenizer),
            encoding: DeepseekV4Encoding::new(),
            prompt_tokenizer,
        })
    }

    /// Name that requests choose it by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When its configuration was written, in Unix seconds.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Longest sequence that is served, prompt and answer together, in tokens.
    #[must_use]
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Whether requests that do not say think.
    #[must_use]
    pub fn default_thinking(&self) -> bool {
        self.default_thinking
    }

    /// Arithmetic that its workers compute in.
    #[must_use]
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Token that ends an answer.
    #[must_use]
    pub fn eos_token_id(&self) -> u32 {
        self.config.eos_token_id
    }

    /// `system_fingerprint` of its answers: which files, arithmetic and version made them.
    #[must_use]
    pub fn system_fingerprint(&self) -> &str {
        &self.system_fingerprint
    }

    /// For decoding answers.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The text of a conversation, with its special tokens marked.
    #[must_use]
    pub fn render(&self, conversation: &Conversation) -> RenderedPrompt {
        self.encoding.render_conversation(conversation)
    }

    /// Tokens that a rendered conversation has at least, without counting them.
    #[must_use]
    pub fn tokens_min(&self, rendered: &RenderedPrompt) -> usize {
        rendered.prompt.len().div_ceil(self.token_bytes_max)
    }

    /// Token ids of a rendered conversation, `[num_tokens]`.
    ///
    /// # Errors
    /// [`super::Error::Internal`]: the tokenizer was checked for every character and special token.
    pub fn encode(&self, rendered: &RenderedPrompt) -> Result<Vec<u32>, super::Error> {
        self.prompt_tokenizer
            .encode_ids(&rendered.prompt, &rendered.special_ranges)
            .map_err(super::internal("encoding the prompt"))
    }

    /// Token ids of plain text, in which special tokens are not recognised.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, super::Error> {
        self.prompt_tokenizer.encode_ids(text, &[]).map_err(super::internal("encoding text"))
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("id", &self.id)
            .field("context_length", &self.context_length)
            .field("system_fingerprint", &self.system_fingerprint)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Modification time of a file in Unix seconds, 0 when the file system has none.
fn modified(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
}

fn load_tokenizer(path: &Path, bytes: &[u8]) -> Result<Tokenizer, Error> {
    let parse = |source| Error::Parse { path: path.to_owned(), source };
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(parse)?;
    // Some files ask to cut or pad to a training length. A prompt must never change length.
    tokenizer.with_truncation(None).map_err(parse)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// A byte-level token has one character for each byte, and a special token stands for itself, so no token stands for more
/// bytes than its spelling has.
fn token_bytes_max(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab(true).into_keys().map(|token| token.len()).max().unwrap_or(1).max(1)
}

fn generation_config(path: &Path) -> Result<GenerationConfig, Error> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: source.into() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(GenerationConfig::default())
        }
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn context_length(options: &ModelOptions, config: &ModelConfig) -> Result<u32, Error> {
    let limit = u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX);
    match options.max_model_len {
        None => Ok(limit),
        Some(asked) if (2..=limit).contains(&asked) => Ok(asked),
        Some(asked) => Err(Error::MaxModelLen { model: options.id.clone(), asked, limit }),
    }
}

/// `fp_` and 8 hex digits over the text files, then arithmetic and version. Weights are compared among workers.
fn system_fingerprint(config: &[u8], tokenizer: &[u8], numerics: Numerics) -> String {
    let mut hash = Sha256::new();
    hash.update(config);
    hash.update(tokenizer);
    let hash = hex::encode(hash.finalize());
    format!("fp_{}_{numerics}_{}", hash.get(..8).unwrap_or_default(), env!("CARGO_PKG_VERSION"))
}

fn check(
    tokenizer: &Tokenizer,
    prompt_tokenizer: &PromptTokenizer,
    config: &ModelConfig,
) -> Result<(), Mismatch> {
    if let Some((token, id)) = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id)
        && usize::try_from(id).is_ok_and(|id| id >= config.vocab_size)
    {
        return Err(Mismatch::OutOfVocabulary { token, id, vocab_size: config.vocab_size });
    }
    let added = tokenizer.get_added_vocabulary().get_vocab();
    for special in SPECIAL_TOKENS {
        let token = special.default_str();
        let id = *added.get(token).ok_or(Mismatch::MissingSpecial(token))?;
        let expected = if special == SpecialToken::Bos {
            Some(("bos_token_id", config.bos_token_id))
        } else if special == SpecialToken::Eos {
            Some(("eos_token_id", config.eos_token_id))
        } else {
            None
        };
        if let Some((field, expected)) = expected
            && id != expected
        {
            return Err(Mismatch::SpecialId { token, id, field, expected });
        }
    }
    let survives = |text: &str| survives(text, tokenizer, prompt_tokenizer);
    // All at once, which is quick; one by one only to name the culprit.
    if survives(&every_utf8_byte().collect::<String>()) {
        return Ok(());
    }
    match every_utf8_byte().find(|char| !survives(char.encode_utf8(&mut [0; 4]))) {
        Some(char) => Err(Mismatch::Lossy(char)),
        None => Ok(()),
    }
}

/// Characters whose encodings contain, together, each byte that UTF-8 can contain.
fn every_utf8_byte() -> impl Iterator<Item = char> {
    // Two bytes: every continuation byte, and the lead bytes up to 0xDF. Then one character for each longer lead byte.
    let short = '\0'..='\u{7FF}';
    let three = (1..16).filter_map(|lead: u32| char::from_u32(lead << 12));
    let four = (0..5).filter_map(|lead: u32| char::from_u32((lead << 18).max(0x1_0000)));
    short.chain(['\u{800}']).chain(three).chain(four)
}

fn survives(text: &str, tokenizer: &Tokenizer, prompt_tokenizer: &PromptTokenizer) -> bool {
    let ids = prompt_tokenizer.encode_ids(text, &[]);
    ids.is_ok_and(|ids| tokenizer.decode(&ids, false).is_ok_and(|decoded| decoded == text))
}
