//! `/v1/files`, OpenAI's Files: what batches read and write.

mod upload;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;

use super::listing::{self, List, Parameters};
use super::{Context, Error};
use crate::auth::Account;
use crate::chat;
use crate::chat::invalid::{Invalid, InvalidCode};
use crate::files::{FileId, FileRecord, ListFiles, Page, Purpose};

/// Most files of a page, and those of a page that does not say.
const LIMIT_MAX: u32 = 10_000;
/// How long a file may be kept that says so, in seconds.
const EXPIRES_AFTER: std::ops::RangeInclusive<i64> = 3600..=2_592_000;
/// What it is counted from.
const ANCHOR: &str = "created_at";
/// What every file is sent as.
const CONTENT: &str = "application/octet-stream";

/// A file on the wire. Times are Unix seconds.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::http) struct FileObject {
    id: String,
    /// `file`.
    object: &'static str,
    bytes: u64,
    created_at: i64,
    expires_at: Option<i64>,
    filename: String,
    /// `batch` or `batch_output`.
    purpose: &'static str,
    /// `processed`; OpenAI keeps the field for old clients.
    status: &'static str,
}

/// A list of files.
pub(in crate::http) type FileList = List<FileObject>;

/// What is left of a file that was deleted.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::http) struct DeletedFile {
    id: String,
    /// `file`.
    object: &'static str,
    deleted: bool,
}

/// The route of all files. The body of an upload has a limit of its own.
pub(super) fn of_many() -> MethodRouter<Context> {
    get(list).post(upload::create).layer(DefaultBodyLimit::disable())
}

/// A page of the key's files.
pub(super) async fn list(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Query(parameters): Parameters,
) -> Result<Json<FileList>, Error> {
    let wanted = read_list(&parameters).map_err(chat::Error::from)?;
    let Page { items, has_more } = context.batches.files().list(account.key_id(), &wanted).await?;
    let items = items.into_iter().map(FileObject::from).collect();
    Ok(Json(List::new(Page { items, has_more }, |file| &file.id)))
}

fn read_list(parameters: &[(String, String)]) -> Result<ListFiles, Invalid> {
    let mut list = ListFiles { purpose: None, limit: LIMIT_MAX, newest_first: true, after: None };
    for (name, value) in parameters {
        match name.as_str() {
            "limit" => list.limit = listing::limit(value, LIMIT_MAX)?,
            "order" => list.newest_first = listing::newest_first(value)?,
            "after" => list.after = Some(value.clone()),
            "purpose" => list.purpose = Some(purpose(value)?),
            _ => {}
        }
    }
    Ok(list)
}

fn purpose(value: &str) -> Result<Purpose, Invalid> {
    Purpose::parse(value).ok_or_else(|| {
        let what = format!("is {value:?}, but this server has files for batches only: \"batch\"");
        Invalid::new(InvalidCode::Value, "purpose", &what)
    })
}

/// One file, without what is in it.
pub(super) async fn retrieve(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<FileObject>, Error> {
    let file = context.batches.files().get(account.key_id(), &FileId::from(id)).await?;
    Ok(Json(file.into()))
}

/// What is in a file.
pub(super) async fn content(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    let files = context.batches.files();
    let file = files.get(account.key_id(), &FileId::from(id)).await?;
    let pieces = files.read(&file.id).await?;
    let headers = [(CONTENT_TYPE, CONTENT.to_owned()), (CONTENT_LENGTH, file.bytes.to_string())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Deletes a file.
pub(super) async fn delete(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<DeletedFile>, Error> {
    let file = FileId::from(id.clone());
    context.batches.files().delete(account.key_id(), &file).await?;
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}

/// Checks an `expires_after`, whose fields have these names.
pub(super) fn check_expires_after(
    anchor: Option<&str>,
    seconds: Option<i64>,
    names: [&str; 2],
) -> Result<Option<i64>, Invalid> {
    let [anchor_name, seconds_name] = names;
    let missing = |name| Invalid::new(InvalidCode::Missing, name, "is required");
    let (anchor, seconds) = match (anchor, seconds) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(missing(anchor_name)),
        (Some(_), None) => return Err(missing(seconds_name)),
        (Some(anchor), Some(seconds)) => (anchor, seconds),
    };
    if anchor != ANCHOR {
        return Err(Invalid::new(InvalidCode::Value, anchor_name, "must be created_at"));
    }
    if !EXPIRES_AFTER.contains(&seconds) {
        let what = format!("must be within {EXPIRES_AFTER:?}");
        return Err(Invalid::new(InvalidCode::Value, seconds_name, &what));
    }
    Ok(Some(seconds))
}

// === impl FileObject ===

impl From<FileRecord> for FileObject {
    fn from(file: FileRecord) -> Self {
        Self {
            id: file.id.as_str().to_owned(),
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_at,
            filename: file.filename,
            purpose: file.purpose.as_str(),
            status: "processed",
        }
    }
}
