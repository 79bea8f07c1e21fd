//! `/v1/batches`, OpenAI's Batches: the requests of a file, answered when nobody waits.

mod perform;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::listing::{self, List, Parameters};
use super::{Context, Error, body};
use crate::auth::Account;
use crate::batches::record::LineError;
use crate::batches::runner::Runner;
use crate::batches::{BatchId, BatchRecord, Endpoint, ListBatches, NewBatch};
use crate::chat;
use crate::chat::invalid::{self, Invalid, InvalidCode};
use crate::files::{FileId, Page};
use perform::Performer;

/// Batches of a page that does not say.
const LIMIT_DEFAULT: u32 = 20;
/// Most batches of a page.
const LIMIT_MAX: u32 = 100;
/// The one time that a batch may take.
const WINDOW: &str = "24h";
/// Most entries of a batch's metadata.
const METADATA_MAX: usize = 16;
/// Longest name in them, in characters.
const METADATA_NAME_MAX: usize = 64;
/// Longest value in them, in characters.
const METADATA_VALUE_MAX: usize = 512;

/// What a batch is made with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CreateBatch {
    /// Id of a file with purpose `batch`.
    input_file_id: String,
    /// `/v1/chat/completions`, `/v1/completions` or `/v1/responses`.
    endpoint: String,
    /// `24h`.
    completion_window: String,
    /// Up to 16 texts of the client's own.
    metadata: Option<Map<String, Value>>,
    /// How long the batch's files are kept.
    output_expires_after: Option<ExpiresAfter>,
}

/// How long something is kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ExpiresAfter {
    /// `created_at`.
    anchor: String,
    /// From one hour to 30 days.
    seconds: i64,
}

/// A batch on the wire. Times are Unix seconds.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::http) struct BatchObject {
    id: String,
    /// `batch`.
    object: &'static str,
    endpoint: &'static str,
    /// What is wrong with the input.
    errors: Option<BatchErrors>,
    input_file_id: String,
    completion_window: &'static str,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
    status: &'static str,
    /// The file with answers, when the batch is over and there are some.
    output_file_id: Option<String>,
    /// The file with failures, when the batch is over and there are some.
    error_file_id: Option<String>,
    created_at: i64,
    in_progress_at: Option<i64>,
    expires_at: i64,
    finalizing_at: Option<i64>,
    completed_at: Option<i64>,
    failed_at: Option<i64>,
    expired_at: Option<i64>,
    cancelling_at: Option<i64>,
    cancelled_at: Option<i64>,
    request_counts: RequestCounts,
    /// What the answers used so far.
    usage: BatchUsage,
    metadata: Option<Map<String, Value>>,
}

/// A list of batches.
pub(in crate::http) type BatchList = List<BatchObject>;

#[derive(Debug, Serialize, JsonSchema)]
struct BatchErrors {
    object: &'static str,
    data: Vec<BatchError>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct BatchError {
    code: String,
    message: String,
    param: Option<String>,
    /// From 1; null for the file as a whole.
    line: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RequestCounts {
    total: u64,
    completed: u64,
    failed: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct BatchUsage {
    input_tokens: u64,
    input_tokens_details: BatchInputDetails,
    output_tokens: u64,
    output_tokens_details: BatchOutputDetails,
    total_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct BatchInputDetails {
    cached_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct BatchOutputDetails {
    reasoning_tokens: u64,
}

/// What runs the batches that these routes make.
#[must_use]
pub fn runner(context: &Context) -> Runner {
    let (chat, responses) = (Arc::clone(&context.chat), Arc::clone(&context.responses));
    let performer = Performer::new(chat, context.accounts.clone(), responses);
    Runner::new(context.batches.clone(), Arc::new(performer))
}

/// Makes a batch.
pub(super) async fn create(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BatchObject>, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let asked = invalid::object(&bytes).and_then(invalid::typed::<CreateBatch>);
    let new = asked.and_then(CreateBatch::check).map_err(chat::Error::from)?;
    Ok(Json(context.batches.create(account.key_id(), new).await?.into()))
}

/// A page of the key's batches, the latest first.
pub(super) async fn list(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Query(parameters): Parameters,
) -> Result<Json<BatchList>, Error> {
    let mut wanted = ListBatches { limit: LIMIT_DEFAULT, after: None };
    for (name, value) in parameters {
        match name.as_str() {
            "limit" => {
                wanted.limit = listing::limit(&value, LIMIT_MAX).map_err(chat::Error::from)?;
            }
            "after" => wanted.after = Some(value),
            _ => {}
        }
    }
    let Page { items, has_more } = context.batches.list(account.key_id(), &wanted).await?;
    let items = items.into_iter().map(BatchObject::from).collect();
    Ok(Json(List::new(Page { items, has_more }, |batch| &batch.id)))
}

/// One batch.
pub(super) async fn retrieve(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<BatchObject>, Error> {
    Ok(Json(context.batches.get(account.key_id(), &BatchId::from(id)).await?.into()))
}

/// Has a batch end early.
pub(super) async fn cancel(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<BatchObject>, Error> {
    Ok(Json(context.batches.cancel(account.key_id(), &BatchId::from(id)).await?.into()))
}

// === impl CreateBatch ===

impl CreateBatch {
    fn check(self) -> Result<NewBatch, Invalid> {
        let wrong = |param: &str, what: &str| Invalid::new(InvalidCode::Value, param, what);
        let endpoint = Endpoint::parse(&self.endpoint).ok_or_else(|| {
            let served = Endpoint::ALL.map(Endpoint::path).join(", ");
            wrong("endpoint", &format!("is {:?}, but must be one of {served}", self.endpoint))
        })?;
        if self.completion_window != WINDOW {
            return Err(wrong("completion_window", "must be \"24h\""));
        }
        if let Some(metadata) = &self.metadata {
            check_metadata(metadata)?;
        }
        let output_expires_after =
            self.output_expires_after.map(ExpiresAfter::check).transpose()?;
        let input = FileId::from(self.input_file_id);
        Ok(NewBatch { input, endpoint, metadata: self.metadata, output_expires_after })
    }
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), Invalid> {
    let fits = |(name, value): (&String, &Value)| {
        let text = value.as_str();
        name.chars().count() <= METADATA_NAME_MAX
            && text.is_some_and(|text| text.chars().count() <= METADATA_VALUE_MAX)
    };
    if metadata.len() <= METADATA_MAX && metadata.iter().all(fits) {
        return Ok(());
    }
    let what = format!(
        "may have {METADATA_MAX} entries with names of {METADATA_NAME_MAX} characters and texts of \
         {METADATA_VALUE_MAX}"
    );
    Err(Invalid::new(InvalidCode::Value, "metadata", &what))
}

// === impl ExpiresAfter ===

impl ExpiresAfter {
    fn check(self) -> Result<i64, Invalid> {
        super::files::check_expires_after(
            Some(&self.anchor),
            Some(self.seconds),
            ["output_expires_after.anchor", "output_expires_after.seconds"],
        )
        .map(|seconds| seconds.unwrap_or(self.seconds))
    }
}

// === impl BatchObject ===

impl From<BatchRecord> for BatchObject {
    fn from(batch: BatchRecord) -> Self {
        let BatchRecord { status, usage, counts, times, .. } = batch;
        // Until then there is nothing in them.
        let file =
            |id: Option<FileId>| id.filter(|_| status.is_final()).map(|id| id.as_str().to_owned());
        let data: Vec<_> = batch.errors.into_iter().map(BatchError::from).collect();
        Self {
            id: batch.id.as_str().to_owned(),
            object: "batch",
            endpoint: batch.endpoint.path(),
            errors: (!data.is_empty()).then_some(BatchErrors { object: "list", data }),
            input_file_id: batch.input.as_str().to_owned(),
            completion_window: WINDOW,
            status: status.as_str(),
            output_file_id: file(batch.output),
            error_file_id: file(batch.error),
            created_at: times.created,
            in_progress_at: times.in_progress,
            expires_at: times.expires,
            finalizing_at: times.finalizing,
            completed_at: times.completed,
            failed_at: times.failed,
            expired_at: times.expired,
            cancelling_at: times.cancelling,
            cancelled_at: times.cancelled,
            request_counts: RequestCounts {
                total: counts.total,
                completed: counts.completed,
                failed: counts.failed,
            },
            usage: BatchUsage {
                input_tokens: usage.prompt,
                input_tokens_details: BatchInputDetails { cached_tokens: usage.cached },
                output_tokens: usage.completion,
                output_tokens_details: BatchOutputDetails { reasoning_tokens: usage.reasoning },
                total_tokens: usage.total(),
            },
            metadata: batch.metadata,
        }
    }
}

impl From<LineError> for BatchError {
    fn from(error: LineError) -> Self {
        let LineError { code, message, param, line } = error;
        Self { code, message, param, line }
    }
}
