//! OpenAI's Files and Batches.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::{JSON, Operation, Tag, of};
use crate::http::batches::{BatchList, BatchObject, CreateBatch};
use crate::http::files::{DeletedFile, FileList, FileObject};
use crate::http::openapi::requests::UploadForm;

/// What a file is sent as.
const BYTES: &str = "application/octet-stream";
/// What a path names.
const FILE: &str = "Id of a file of the same key.";
/// What a path names.
const BATCH: &str = "Id of a batch of the same key.";
/// How pages follow each other.
const AFTER: &str = "Id of the last item of the page before.";

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    [files(), batches()].concat()
}

fn files() -> Vec<Operation> {
    let new = |method, path, id| Operation::new(method, path, id, Tag::Files).key();
    vec![
        new(Method::POST, "/v1/files", "createFile")
            .summary("Upload file")
            .description("Keeps a file with the requests of a batch, one JSON object in each line.")
            .form::<UploadForm>()
            .answer(200, "The file.", vec![of::<FileObject>(JSON)]),
        new(Method::GET, "/v1/files", "listFiles")
            .summary("List files")
            .description("The key's files, page by page.")
            .query_parameter(
                "limit",
                "Most files of the page.",
                json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 10_000 }),
            )
            .query_parameter(
                "order",
                "Newest first, or oldest.",
                json!({ "type": "string", "enum": ["desc", "asc"], "default": "desc" }),
            )
            .query_parameter("after", AFTER, json!({ "type": "string" }))
            .query_parameter(
                "purpose",
                "Files for this only.",
                json!({ "type": "string", "enum": ["batch", "batch_output"] }),
            )
            .answer(200, "The page.", vec![of::<FileList>(JSON)])
            .refuses(&[StatusCode::BAD_REQUEST]),
        new(Method::GET, "/v1/files/{id}", "retrieveFile")
            .summary("Retrieve file")
            .description("What is known of a file.")
            .path_parameter("id", FILE)
            .answer(200, "The file.", vec![of::<FileObject>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        new(Method::DELETE, "/v1/files/{id}", "deleteFile")
            .summary("Delete file")
            .description("Deletes a file. The input of a batch that is not over is refused.")
            .path_parameter("id", FILE)
            .answer(200, "It is deleted.", vec![of::<DeletedFile>(JSON)])
            .refuses(&[StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND]),
        new(Method::GET, "/v1/files/{id}/content", "downloadFile")
            .summary("Retrieve file content")
            .description("What is in a file.")
            .path_parameter("id", FILE)
            .answer(200, "The content.", vec![of::<String>(BYTES)])
            .refuses(&[StatusCode::NOT_FOUND]),
    ]
}

fn batches() -> Vec<Operation> {
    let new = |method, path, id| Operation::new(method, path, id, Tag::Batches).key();
    vec![
        new(Method::POST, "/v1/batches", "createBatch")
            .summary("Create batch")
            .description(
                "Has the requests of a file answered when the cluster has nothing else to do. What is wrong with the file \
                 is found later; the batch is `failed` then, and lists it.",
            )
            .body::<CreateBatch>()
            .answer(200, "The batch.", vec![of::<BatchObject>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        new(Method::GET, "/v1/batches", "listBatches")
            .summary("List batches")
            .description("The key's batches, the latest first, page by page.")
            .query_parameter(
                "limit",
                "Most batches of the page.",
                json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 }),
            )
            .query_parameter("after", AFTER, json!({ "type": "string" }))
            .answer(200, "The page.", vec![of::<BatchList>(JSON)])
            .refuses(&[StatusCode::BAD_REQUEST]),
        new(Method::GET, "/v1/batches/{id}", "retrieveBatch")
            .summary("Retrieve batch")
            .description("A batch, as it is now.")
            .path_parameter("id", BATCH)
            .answer(200, "The batch.", vec![of::<BatchObject>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        new(Method::POST, "/v1/batches/{id}/cancel", "cancelBatch")
            .summary("Cancel batch")
            .description(
                "Has a batch end early. Answers that are there stay, and are in its output file when it is `cancelled`.",
            )
            .path_parameter("id", BATCH)
            .answer(200, "The batch.", vec![of::<BatchObject>(JSON)])
            .refuses(&[StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND]),
    ]
}
