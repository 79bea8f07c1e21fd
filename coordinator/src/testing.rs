//! What tests of the client APIs share: a model folder made by program, and an engine that follows a script.

pub(crate) mod log;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use deepseek_recipe_core::special_tokens::SpecialToken;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::auth::{Accounts, KeyStore};
use crate::batches::Batches;
use crate::chat::compat::Compat;
use crate::chat::model::Model;
use crate::chat::{Chat, Generate, Served};
use crate::election::Standing;
use crate::engine::request::{
    FinishReason, GenerateEvent, GenerateRequest, GeneratedToken, Generation, SubmitError,
};
use crate::engine::status::{GroupStatus, Phase};
use crate::files::Files;
use crate::files::contents::Contents;
use crate::http::models::Catalog;
use crate::options::{FileLimits, Limits, ModelOptions, default_file_store};
use crate::{http, metric_definitions};

/// Special tokens of the test tokenizer, in the order of their ids from 0.
pub(crate) const SPECIALS: [&str; 10] = [
    SpecialToken::Bos.default_str(),
    SpecialToken::Eos.default_str(),
    "<｜▁pad▁｜>",
    SpecialToken::User.default_str(),
    SpecialToken::Assistant.default_str(),
    "<|EOT|>",
    SpecialToken::ThinkingStart.default_str(),
    SpecialToken::ThinkingEnd.default_str(),
    SpecialToken::Dsml.default_str(),
    SpecialToken::LatestReminder.default_str(),
];
pub(crate) const BOS: u32 = 0;
pub(crate) const EOS: u32 = 1;
pub(crate) const USER: u32 = 3;
pub(crate) const ASSISTANT: u32 = 4;
pub(crate) const THINK: u32 = 6;
pub(crate) const END_THINK: u32 = 7;
pub(crate) const DSML: u32 = 8;
/// Id of byte 0; the other bytes follow.
const FIRST_BYTE: u32 = 10;
/// Rows of the test model's embedding.
pub(crate) const VOCAB_SIZE: usize = 266;
/// Longest sequence of the test model.
pub(crate) const CONTEXT_LENGTH: u32 = 1024;
/// Id of the test model.
pub(crate) const MODEL: &str = "tiny";
/// A key that the test server accepts.
pub(crate) const KEY: &str = "sk-sy-test-key";

// === Model folder ===

/// A folder with the files of a model, to be spoilt by a test.
pub(crate) struct ModelDir {
    dir: tempfile::TempDir,
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    pub(crate) generation_config: Option<Value>,
}

impl ModelDir {
    pub(crate) fn new() -> Self {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/micro/q/config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(fixture).unwrap()).unwrap();
        config["vocab_size"] = VOCAB_SIZE.into();
        config["max_position_embeddings"] = CONTEXT_LENGTH.into();
        config["rope_scaling"]["original_max_position_embeddings"] = CONTEXT_LENGTH.into();
        Self {
            dir: tempfile::tempdir().unwrap(),
            config,
            tokenizer: tokenizer_json(),
            generation_config: Some(json!({ "default_thinking": false, "temperature": 1.0 })),
        }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn write(&self) -> &Path {
        let write = |file, value: &Value| {
            std::fs::write(self.path(file), value.to_string()).unwrap();
        };
        write("config.json", &self.config);
        write("tokenizer.json", &self.tokenizer);
        if let Some(generation_config) = &self.generation_config {
            write("generation_config.json", generation_config);
        }
        self.dir.path()
    }

    pub(crate) fn options(&self) -> ModelOptions {
        ModelOptions::new(MODEL, self.write())
    }
}

/// Byte-level BPE without merges: one token per byte.
fn tokenizer_json() -> Value {
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in (0_u32..).zip(SPECIALS) {
        vocab.insert(token.to_owned(), id.into());
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": id < 3,
        }));
    }
    for byte in 0..=255_u8 {
        vocab.insert(byte_char(byte).to_string(), (FIRST_BYTE + u32::from(byte)).into());
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// The character that stands for a byte in a byte-level vocabulary.
pub(crate) fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count();
    char::from_u32(256 + u32::try_from(before).unwrap()).unwrap()
}

/// Token ids of plain text.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| FIRST_BYTE + u32::from(byte)).collect()
}

/// A request's body with more fields, or others.
pub(crate) fn merged(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

// === Engine ===

/// What the engine does with the next request.
#[derive(Debug)]
pub(crate) enum Script {
    Events(Vec<GenerateEvent>),
    Refuse(SubmitError),
    /// The test sends the events, and sees the cancellation.
    Manual(mpsc::Receiver<GenerateEvent>),
}

/// An engine that does as it is told.
#[derive(Debug)]
pub(crate) struct ScriptedEngine {
    status: watch::Sender<GroupStatus>,
    scripts: Mutex<VecDeque<Script>>,
    requests: Mutex<Vec<GenerateRequest>>,
}

impl ScriptedEngine {
    pub(crate) fn new() -> Arc<Self> {
        let mut status = GroupStatus::new(usize::try_from(CONTEXT_LENGTH).unwrap());
        status.phase = Phase::Ready;
        Arc::new(Self {
            status: watch::channel(status).0,
            scripts: Mutex::default(),
            requests: Mutex::default(),
        })
    }

    pub(crate) fn script(&self, script: Script) {
        self.scripts.lock().unwrap().push_back(script);
    }

    /// The next request is answered with `tokens` and a stop.
    pub(crate) fn answer(&self, tokens: &[u32]) {
        self.script(Script::Events(complete(tokens, FinishReason::Stop)));
    }

    /// The next request is answered by hand.
    pub(crate) fn manual(&self) -> mpsc::Sender<GenerateEvent> {
        let (events, receiver) = mpsc::channel(64);
        self.script(Script::Manual(receiver));
        events
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut GroupStatus)) {
        self.status.send_modify(change);
    }

    /// The requests that reached the engine since the last call.
    pub(crate) fn take_requests(&self) -> Vec<GenerateRequest> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Generate for ScriptedEngine {
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        self.requests.lock().unwrap().push(request);
        let script = self.scripts.lock().unwrap().pop_front();
        let result = match script.expect("the test scripted an answer") {
            Script::Refuse(error) => Err(error),
            Script::Manual(events) => Ok(Generation::new(events)),
            Script::Events(script) => {
                let (events, receiver) = mpsc::channel(script.len().max(1));
                for event in script {
                    events.try_send(event).unwrap();
                }
                Ok(Generation::new(receiver))
            }
        };
        Box::pin(async move { result })
    }

    fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.status.subscribe()
    }
}

pub(crate) fn token(token_id: u32) -> GenerateEvent {
    GenerateEvent::Token(GeneratedToken { token_id, logprob: None, top_logprobs: Vec::new() })
}

pub(crate) fn complete(tokens: &[u32], reason: FinishReason) -> Vec<GenerateEvent> {
    tokens.iter().copied().map(token).chain([GenerateEvent::Finished(reason)]).collect()
}

/// The test model over a new scripted engine.
pub(crate) fn served() -> (Served, Arc<ScriptedEngine>) {
    served_with_context(CONTEXT_LENGTH)
}

/// The test model with room for sequences of so many tokens.
pub(crate) fn served_with_context(context_length: u32) -> (Served, Arc<ScriptedEngine>) {
    let mut dir = ModelDir::new();
    dir.config["max_position_embeddings"] = context_length.into();
    let engine = ScriptedEngine::new();
    engine.set(|status| status.max_model_len = usize::try_from(context_length).unwrap());
    let model = Model::load(&dir.options()).unwrap();
    (Served { model, engine: Arc::clone(&engine) as Arc<dyn Generate> }, engine)
}

// === Server ===

/// Everything behind both APIs, over one scripted engine.
pub(crate) struct Fixture {
    pub(crate) engine: Arc<ScriptedEngine>,
    pub(crate) context: http::Context,
    data_dir: tempfile::TempDir,
    _ledger: DropGuard,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        Self::with(limits, Compat::default()).await
    }

    pub(crate) async fn with(limits: Limits, compat: Compat) -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let (served, engine) = served();
        let keys =
            KeyStore::open(&crate::options::default_database_url(data_dir.path())).await.unwrap();
        keys.insert_plaintext("test", KEY).await.unwrap();
        let batches = batches(data_dir.path(), &keys, FileLimits::default());
        let (accounts, ledger) = Accounts::new(keys);
        let stop = CancellationToken::new();
        tokio::spawn(ledger.run(stop.clone()));
        let context = http::Context {
            chat: Arc::new(
                Chat::new(vec![served], limits.in_flight_requests_max).with_compat(compat),
            ),
            accounts,
            admin: None,
            responses: Arc::default(),
            batches,
            limits: Arc::new(limits),
            catalog: Arc::new(Catalog::new(&[])),
            playground: true,
            metrics: metrics(),
            standing: standing(Standing::Leads),
            metrics_aliases: None,
            draining: CancellationToken::new(),
        };
        Self { engine, context, data_dir, _ledger: stop.drop_guard() }
    }
}

impl Fixture {
    /// Has other bounds on files.
    pub(crate) fn limit_files(&mut self, limits: FileLimits) {
        let keys = self.context.accounts.keys().clone();
        self.context.batches = batches(self.data_dir.path(), &keys, limits);
    }
}

/// The batches beside these keys, with files in a folder.
fn batches(data_dir: &Path, keys: &KeyStore, limits: FileLimits) -> Batches {
    let contents = Contents::open(&default_file_store(data_dir)).unwrap();
    let (database, clock) = (keys.database().clone(), keys.clock().clone());
    let files = Files::new(database.clone(), contents, clock.clone(), Arc::new(limits));
    Batches::new(database, files, clock, Arc::default())
}

/// A standing that stays.
pub(crate) fn standing(standing: Standing) -> watch::Receiver<Standing> {
    watch::channel(standing).1
}

/// The recorder that all tests of this process share.
pub(crate) fn metrics() -> PrometheusHandle {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| metric_definitions::install().unwrap()).clone()
}

pub(crate) fn failed(error: crate::engine::request::GenerateError) -> GenerateEvent {
    GenerateEvent::Failed(error)
}
