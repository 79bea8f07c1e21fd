//! A served model's files: configuration, tokenizer, defaults. All checked against each other before anything starts.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use deepseek_recipe_core::conversation::Conversation;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_encoding::dsv4::DeepseekV4Encoding;
use deepseek_recipe_encoding::{
    PromptEncoding as _, PromptTokenizer, RenderedPrompt, TokenizerEncoder as _,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use switchyard_grammar::Vocabulary;
use switchyard_moe::config::ModelConfig;
use tokenizers::Tokenizer;

use super::invalid::{Invalid, InvalidCode};
use crate::options::{ModelOptions, Numerics};

mod error;

pub use error::{Error, Mismatch};

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
    tokenizer_json: Bytes,
    prompt_tokenizer: PromptTokenizer,
    /// Made when a constrained answer is first asked for.
    vocabulary: OnceLock<Result<Vocabulary, switchyard_grammar::Error>>,
    /// Most bytes of text that one token stands for.
    token_bytes_max: usize,
    encoding: DeepseekV4Encoding,
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
            tokenizer_json: tokenizer_bytes.into(),
            encoding: DeepseekV4Encoding::new(),
            prompt_tokenizer,
            vocabulary: OnceLock::new(),
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

    /// Its `tokenizer.json`, as it was read at the start.
    #[must_use]
    pub fn tokenizer_json(&self) -> &Bytes {
        &self.tokenizer_json
    }

    /// Its tokens as grammars see them.
    ///
    /// # Errors
    /// When the tokenizer is of another kind than the family's, which stays so.
    pub fn vocabulary(&self) -> Result<&Vocabulary, switchyard_grammar::Error> {
        let new = || {
            Vocabulary::new(&self.tokenizer_json, self.config.vocab_size, self.config.eos_token_id)
        };
        self.vocabulary.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// The id of a special token. Those of the family were found when the model was loaded.
    #[must_use]
    pub fn special_token_id(&self, token: SpecialToken) -> u32 {
        self.tokenizer.token_to_id(token.default_str()).unwrap_or(u32::MAX)
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

    /// Plain text, in which special tokens are not recognised, as a prompt; behind the token that begins a sequence when
    /// `begin`.
    #[must_use]
    pub fn render_text(&self, text: &str, begin: bool) -> RenderedPrompt {
        let bos = if begin { SpecialToken::Bos.default_str() } else { "" };
        RenderedPrompt {
            prompt: format!("{bos}{text}"),
            special_ranges: begin.then_some(0..bos.len()).into_iter().collect(),
            image_sources: Vec::new(),
        }
    }

    /// The text of token ids, special tokens spelled out.
    ///
    /// # Errors
    /// [`super::Error::Internal`]: the ids were checked to be below the vocabulary size.
    pub fn decode(&self, token_ids: &[u32]) -> Result<String, super::Error> {
        self.tokenizer.decode(token_ids, false).map_err(super::internal("decoding tokens"))
    }

    /// Checks that the model has these tokens, which the field `param` holds.
    ///
    /// # Errors
    /// [`Invalid`], with the first that it does not have.
    pub fn check_tokens(&self, param: &str, token_ids: &[u32]) -> Result<(), Invalid> {
        let vocab_size = self.config.vocab_size;
        let beyond = |id: &&u32| usize::try_from(**id).map_or(true, |id| id >= vocab_size);
        match token_ids.iter().find(beyond) {
            None => Ok(()),
            Some(id) => {
                let what = format!("has token {id}, but the model has {vocab_size} tokens");
                Err(Invalid::new(InvalidCode::Value, param, &what))
            }
        }
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
