mod crash;
mod input;
mod life;

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::perform::{Answered, Call, Perform, Performed};
use super::runner::{LEASE_SECONDS, Runner};
use super::*;
use crate::auth::ledger::{Tokens, Usage};
use crate::auth::report::{GroupBy, Query};
use crate::auth::testing::{Fixture, NOW, fixtures};
use crate::files::contents::Contents;
use crate::files::{FileId, ListFiles, NewFile};
use crate::options::{FileLimits, FileStore};

const OWNER: KeyId = KeyId::new(7);
const STRANGER: KeyId = KeyId::new(8);
/// What each answer of [`Fake`] costs.
const PRICE: Tokens = Tokens { prompt: 10, cached: 1, completion: 5, reasoning: 2 };

/// Answers without a model. A body says what becomes of it: `{"fail": 400}`, `{"hang": true}`.
#[derive(Debug, Default)]
struct Fake {
    num_calls: AtomicUsize,
}

impl Fake {
    async fn answer(&self, call: Call) -> Performed {
        self.num_calls.fetch_add(1, Ordering::Relaxed);
        assert_eq!(call.owner, OWNER);
        let body = Value::Object(call.body);
        // A place to be dropped at.
        tokio::task::yield_now().await;
        if body["hang"] == true {
            std::future::pending::<()>().await;
        }
        let usage = Usage { key_id: call.owner, model: "flash".into(), tokens: PRICE };
        if let Some(status) = body["fail"].as_u64() {
            let status = u16::try_from(status).unwrap();
            let answered =
                Answered { status, body: json!({ "error": "as asked" }), usage: Vec::new() };
            return Performed::Answered(answered);
        }
        let echo = json!({ "endpoint": call.endpoint.path(), "echo": body });
        Performed::Answered(Answered { status: 200, body: echo, usage: vec![usage] })
    }
}

impl Perform for Fake {
    fn perform(&self, call: Call) -> BoxFuture<'_, Performed> {
        Box::pin(self.answer(call))
    }
}

/// Batches over a database of the fixture, and files in a folder.
struct Setup {
    batches: Batches,
    fake: Arc<Fake>,
    _dir: tempfile::TempDir,
}

impl Setup {
    fn new(fixture: &Fixture) -> Self {
        Self::with(fixture, BatchLimits { concurrency: 4, ..BatchLimits::default() })
    }

    fn with(fixture: &Fixture, limits: BatchLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let contents = Contents::open(&FileStore::Folder(dir.path().to_path_buf())).unwrap();
        let (database, clock) = (fixture.keys.database().clone(), fixture.keys.clock().clone());
        let files = Arc::new(FileLimits::default());
        let files = Files::new(database.clone(), contents, clock.clone(), files);
        let batches = Batches::new(database, files, clock, Arc::new(limits));
        Self { batches, fake: Arc::default(), _dir: dir }
    }

    /// A runner as a coordinator that has just started has it.
    fn runner(&self) -> Runner {
        Runner::new(self.batches.clone(), Arc::clone(&self.fake) as Arc<dyn Perform>)
    }

    async fn upload(&self, text: &str) -> FileId {
        let mut upload = self.batches.files.begin(OWNER).await.unwrap();
        upload.put(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
        let filename = "requests.jsonl".to_owned();
        let new = NewFile { purpose: Purpose::Batch, filename, expires_after: None };
        upload.finish(new).await.unwrap().id
    }

    /// A batch of chats with these bodies; their custom ids count from `c0`.
    async fn create(&self, bodies: &[Value]) -> BatchRecord {
        let text: String = bodies
            .iter()
            .enumerate()
            .map(|(index, body)| request(&format!("c{index}"), body).to_string() + "\n")
            .collect();
        self.create_of(&text).await
    }

    async fn create_of(&self, text: &str) -> BatchRecord {
        let input = self.upload(text).await;
        self.batches.create(OWNER, new_batch(input)).await.unwrap()
    }

    async fn get(&self, id: &BatchId) -> BatchRecord {
        self.batches.get(OWNER, id).await.unwrap()
    }

    async fn read(&self, id: &FileId) -> String {
        self.batches.files.get(OWNER, id).await.unwrap();
        let pieces: Vec<Bytes> =
            self.batches.files.read(id).await.unwrap().try_collect().await.unwrap();
        String::from_utf8(pieces.concat()).unwrap()
    }

    /// The lines of a file of a batch; none if there is no file.
    async fn lines(&self, id: Option<&FileId>) -> Vec<Value> {
        let Some(id) = id else { return Vec::new() };
        let text = self.read(id).await;
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn new_batch(input: FileId) -> NewBatch {
    let endpoint = Endpoint::ChatCompletions;
    NewBatch { input, endpoint, metadata: None, output_expires_after: None }
}

fn request(custom_id: &str, body: &Value) -> Value {
    json!({
        "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body,
    })
}

/// The custom ids of a file's lines.
fn custom_ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect()
}

/// Requests and tokens in the ledger.
async fn charged(fixture: &Fixture) -> (u64, Tokens) {
    let day = |month| jiff::civil::date(2026, month, 1);
    let (from, to) = (day(1), day(12));
    let query = Query { from, to, key_id: Some(OWNER), model: None, group_by: GroupBy::Key };
    match fixture.keys.usage(&query).await.unwrap().as_slice() {
        [] => (0, Tokens::default()),
        [sum] => (sum.requests, sum.tokens),
        sums => panic!("one key, but {sums:?}"),
    }
}

fn times(count: u64, tokens: Tokens) -> (u64, Tokens) {
    let Tokens { prompt, cached, completion, reasoning } = tokens;
    let tokens = Tokens {
        prompt: prompt * count,
        cached: cached * count,
        completion: completion * count,
        reasoning: reasoning * count,
    };
    (count, tokens)
}
