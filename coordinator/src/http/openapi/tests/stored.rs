//! What is answered of files and batches, against its schemas.

use bytes::Bytes;

use super::*;
use crate::files::{NewFile, Purpose};

#[tokio::test]
async fn answers_of_files_and_batches_fit_their_schemas() {
    let fixture = whole().await;
    let document = document(true);
    let account = fixture.context.accounts.authenticate(KEY).await.unwrap();
    let mut upload = fixture.context.batches.files().begin(account.key_id()).await.unwrap();
    upload.put(Bytes::from_static(b"{}\n")).await.unwrap();
    let filename = "requests.jsonl".to_owned();
    let new = NewFile { purpose: Purpose::Batch, filename, expires_after: None };
    let file = upload.finish(new).await.unwrap().id;
    let create = json!({
        "input_file_id": file.as_str(), "endpoint": "/v1/completions", "completion_window": "24h",
        "metadata": { "a": "b" },
    });
    let mut id = file.as_str().to_owned();
    for (method, path, status) in [
        ("get", "/v1/files/{id}", "200"),
        ("get", "/v1/files", "200"),
        ("post", "/v1/files", "415"),
        ("post", "/v1/batches", "200"),
        ("delete", "/v1/files/{id}", "400"),
        ("get", "/v1/batches", "200"),
        ("get", "/v1/batches/{id}", "200"),
        ("post", "/v1/batches/{id}/cancel", "200"),
        ("delete", "/v1/files/{id}", "200"),
        ("get", "/v1/files/{id}", "404"),
    ] {
        if path.starts_with("/v1/files/") {
            file.as_str().clone_into(&mut id);
        }
        let body = if path == "/v1/batches" { create.to_string() } else { String::new() };
        let response = send(&fixture, method, &path.replace("{id}", &id), body).await;
        assert_eq!(response.status().as_str(), status, "{method} {path}");
        let answer: Value = serde_json::from_str(&text(response).await).unwrap();
        let schema = schema(&document, path, method, status, "application/json");
        assert_eq!(misfit(&document, schema, &answer, path), None, "{answer}");
        // From here on it is a batch that paths name.
        if path == "/v1/batches" && method == "get" {
            answer["data"][0]["id"].as_str().unwrap().clone_into(&mut id);
        }
    }
}
