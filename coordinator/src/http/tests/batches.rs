//! Files and batches over HTTP, from the upload to the answers.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::options::FileLimits;

const BOUNDARY: &str = "a-boundary";

/// A part of a form; a file has a name.
fn part(name: &str, filename: Option<&str>, value: &str) -> String {
    let filename = filename.map_or_else(String::new, |it| format!("; filename=\"{it}\""));
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n{value}\r\n"
    )
}

fn form(parts: &[String]) -> Request<Body> {
    let body = format!("{}--{BOUNDARY}--\r\n", parts.concat());
    form_of(body)
}

fn form_of(body: String) -> Request<Body> {
    Request::post("/v1/files")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(body.into())
        .unwrap()
}

fn with_key(method: &str, path: &str, key: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request.header("authorization", format!("Bearer {key}")).body(Body::empty()).unwrap()
}

impl Fixture {
    async fn upload(&self, text: &str) -> Answer {
        let purpose = part("purpose", None, "batch");
        self.send(form(&[purpose, part("file", Some("requests.jsonl"), text)])).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(with_key("DELETE", path, KEY)).await
    }

    /// Has a batch of these requests made.
    async fn batch(&self, endpoint: &str, lines: &[Value]) -> Value {
        let text: String = lines.iter().map(|line| line.to_string() + "\n").collect();
        let file = self.upload(&text).await.json();
        let body = json!({
            "input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h",
        });
        let made = self.post("/v1/batches", &body).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text());
        made.json()
    }

    /// Runs batches until this one is over.
    async fn run(&self, batch: &Value) -> Value {
        let runner = crate::http::batches::runner(&self.context);
        let stop = CancellationToken::new();
        let running = tokio::spawn(runner.run(stop.clone()));
        let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
        loop {
            let batch = self.get(&path).await.json();
            if ["completed", "failed", "expired", "cancelled"]
                .contains(&batch["status"].as_str().unwrap())
            {
                stop.cancel();
                running.await.unwrap();
                return batch;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn file_lines(&self, id: &Value) -> Vec<Value> {
        let path = format!("/v1/files/{}/content", id.as_str().unwrap());
        let text = self.get(&path).await.text();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn line(custom_id: &str, url: &str, body: &Value) -> Value {
    let body = merged(json!({ "model": MODEL }), body);
    json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body })
}

#[tokio::test]
async fn a_file_is_uploaded_read_listed_and_deleted() {
    let fixture = Fixture::new().await;
    let text = "{\"a\": 1}\n{\"b\": 2}\n";
    let uploaded = fixture.upload(text).await;
    assert_eq!(uploaded.status, StatusCode::OK, "{}", uploaded.text());
    let file = uploaded.json();
    let id = file["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    assert_eq!(
        (file["object"].as_str(), file["purpose"].as_str(), file["filename"].as_str()),
        (Some("file"), Some("batch"), Some("requests.jsonl"))
    );
    assert_eq!(file["bytes"], text.len());
    let kept = file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap();
    assert_eq!(kept, 30 * 86_400);

    let path = format!("/v1/files/{id}");
    assert_eq!(fixture.get(&path).await.json(), file);
    let content = fixture.get(&format!("{path}/content")).await;
    assert_eq!(content.text(), text);
    assert_eq!(content.header("content-length"), text.len().to_string());
    let list = fixture.get("/v1/files?purpose=batch&limit=1").await.json();
    assert_eq!((&list["data"][0], &list["has_more"]), (&file, &json!(false)));
    assert_eq!((&list["first_id"], &list["last_id"]), (&file["id"], &file["id"]));

    let deleted = fixture.delete(&path).await.json();
    assert_eq!(deleted, json!({ "id": id, "object": "file", "deleted": true }));
    for answer in [fixture.get(&path).await, fixture.delete(&path).await] {
        assert_eq!(answer.error(), (404, "file_not_found".into(), None));
    }
}

#[tokio::test]
async fn fields_of_a_form_come_in_any_order() {
    let fixture = Fixture::new().await;
    let parts = [
        part("file", Some("a.jsonl"), "\u{feff}\n {}"),
        part("expires_after[seconds]", None, "3600"),
        part("expires_after[anchor]", None, "created_at"),
        part("purpose", None, "batch"),
    ];
    let file = fixture.send(form(&parts)).await.json();
    let kept = file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap();
    assert_eq!(kept, 3600);
}

#[tokio::test]
async fn bad_uploads_are_refused_and_leave_nothing() {
    let fixture = Fixture::new().await;
    let file = || part("file", Some("a.jsonl"), "{}");
    let purpose = |purpose: &str| part("purpose", None, purpose);
    let seconds = |seconds: &str| part("expires_after[seconds]", None, seconds);
    let anchor = |anchor: &str| part("expires_after[anchor]", None, anchor);
    for (parts, code, param) in [
        (vec![file()], "missing_required_parameter", "purpose"),
        (vec![purpose("batch")], "missing_required_parameter", "file"),
        (vec![file(), purpose("fine-tune")], "invalid_value", "purpose"),
        (vec![file(), purpose("batch_output")], "invalid_value", "purpose"),
        (vec![file(), file(), purpose("batch")], "invalid_value", "file"),
        (vec![part("file", Some("a"), "%PDF-1.7"), purpose("batch")], "invalid_value", "file"),
        (vec![part("file", Some("a"), "[{}]"), purpose("batch")], "invalid_value", "file"),
        (vec![part("file", Some("a"), " \n"), purpose("batch")], "invalid_value", "file"),
        (vec![file(), purpose("batch"), part("x", None, "1")], "unsupported_parameter", "x"),
        (
            vec![file(), purpose("batch"), seconds("3600")],
            "missing_required_parameter",
            "expires_after[anchor]",
        ),
        (
            vec![file(), purpose("batch"), seconds("3599"), anchor("created_at")],
            "invalid_value",
            "expires_after[seconds]",
        ),
        (
            vec![file(), purpose("batch"), seconds("3600"), anchor("now")],
            "invalid_value",
            "expires_after[anchor]",
        ),
    ] {
        let refused = fixture.send(form(&parts)).await;
        assert_eq!(refused.error(), (400, code.into(), Some(param.into())), "{parts:?}");
    }
    // Cut off, and no form at all.
    let cut = form_of(part("purpose", None, "batch"));
    assert_eq!(fixture.send(cut).await.error(), (400, "invalid_multipart".into(), None));
    let json = post_to("/v1/files", "{}");
    assert_eq!(fixture.send(json).await.error(), (415, "unsupported_media_type".into(), None));
    assert_eq!(fixture.get("/v1/files").await.json()["data"], json!([]));
    for query in ["limit=0", "limit=x", "order=up", "purpose=vision"] {
        let param = query.split_once('=').map(|(param, _)| param.to_owned());
        let refused = fixture.get(&format!("/v1/files?{query}")).await;
        assert_eq!(refused.error(), (400, "invalid_value".into(), param));
    }
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_and_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    let limits = FileLimits { file_bytes_max: 9, ..FileLimits::default() };
    fixture.limit_files(limits);
    assert_eq!(fixture.upload("{\"a\": 12}").await.status, StatusCode::OK);
    // Far more than a request's body may have otherwise, and read to its end.
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(10 << 20));
    let refused = fixture.upload(&large).await;
    assert_eq!(refused.error(), (413, "request_too_large".into(), Some("file".into())));
    assert_eq!(fixture.get("/v1/files").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_large_file_passes_though_other_bodies_may_not_be_so_large() {
    let fixture = Fixture::new().await;
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(20 << 20));
    let file = fixture.upload(&large).await.json();
    assert_eq!(file["bytes"], large.len());
    let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
    assert!(fixture.get(&path).await.text() == large, "what came back differs");
}

#[tokio::test]
async fn a_batch_answers_as_the_route_would() {
    let fixture = Fixture::new().await;
    let url = "/v1/chat/completions";
    let hi = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let lines = [
        line("good", url, &hi),
        line("bad", url, &json!({ "messages": [{ "role": "user", "content": "hi" }], "n": 99 })),
        line("ugly", url, &merged(hi.clone(), &json!({ "model": "other" }))),
    ];
    let made = fixture.batch(url, &lines).await;
    assert_eq!((&made["status"], &made["object"]), (&json!("validating"), &json!("batch")));
    assert_eq!((&made["errors"], &made["output_file_id"]), (&Value::Null, &Value::Null));
    fixture.engine.answer(&testing::ids("one two"));
    let batch = fixture.run(&made).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    let counts = json!({ "total": 3, "completed": 1, "failed": 2 });
    assert_eq!(batch["request_counts"], counts);

    let output = fixture.file_lines(&batch["output_file_id"]).await;
    assert_eq!(output.len(), 1);
    let fields: Vec<_> = output[0].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["id", "custom_id", "response", "error"]);
    assert_eq!(output[0]["custom_id"], "good");
    let response = &output[0]["response"];
    assert_eq!(response["status_code"], 200);
    let body = &response["body"];
    assert_eq!(body["choices"][0]["message"]["content"], "one two");
    assert_eq!(batch["usage"]["input_tokens"], body["usage"]["prompt_tokens"]);
    assert_eq!(batch["usage"]["output_tokens"], body["usage"]["completion_tokens"]);
    let errors = fixture.file_lines(&batch["error_file_id"]).await;
    let failed: Vec<_> = errors
        .iter()
        .map(|line| {
            let response = &line["response"];
            let code = &response["body"]["error"]["code"];
            (line["custom_id"].as_str(), response["status_code"].as_u64(), code.as_str())
        })
        .collect();
    assert_eq!(
        failed,
        [
            (Some("bad"), Some(400), Some("invalid_value")),
            (Some("ugly"), Some(404), Some("model_not_found")),
        ]
    );
    // Behind those that somebody waits for.
    let requests = fixture.engine.take_requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].priority, crate::scheduler::Priority::Batch);
    // The ledger has it once, under the key.
    let account = fixture.context.accounts.authenticate(KEY).await.unwrap();
    let today = fixture.context.accounts.keys().clock().today();
    let query = crate::auth::report::Query {
        from: today.yesterday().unwrap(),
        to: today.tomorrow().unwrap(),
        key_id: Some(account.key_id()),
        model: None,
        group_by: crate::auth::report::GroupBy::Key,
    };
    let sums = fixture.context.accounts.keys().usage(&query).await.unwrap();
    assert_eq!(sums.len(), 1);
    assert_eq!(sums[0].requests, 1);
    assert_eq!(body["usage"]["prompt_tokens"], sums[0].tokens.prompt);
    assert_eq!(body["usage"]["completion_tokens"], sums[0].tokens.completion);

    let list = fixture.get("/v1/batches?limit=1").await.json();
    assert_eq!((&list["data"][0], &list["has_more"]), (&batch, &json!(false)));
}

#[tokio::test]
async fn the_other_endpoints_have_batches_too() {
    let fixture = Fixture::new().await;
    for (url, fields, kind) in [
        ("/v1/completions", json!({ "prompt": "hi" }), "text_completion"),
        ("/v1/responses", json!({ "input": "hi" }), "response"),
    ] {
        let background = merged(fields.clone(), &json!({ "background": true }));
        let made =
            fixture.batch(url, &[line("a", url, &fields), line("b", url, &background)]).await;
        fixture.engine.answer(&testing::ids("ok"));
        let batch = fixture.run(&made).await;
        let output = fixture.file_lines(&batch["output_file_id"]).await;
        assert_eq!(output[0]["response"]["body"]["object"], kind, "{batch}");
        let errors = fixture.file_lines(&batch["error_file_id"]).await;
        assert_eq!(errors[0]["response"]["body"]["error"]["param"], "background");
    }
}

#[tokio::test]
async fn what_a_model_cannot_do_now_is_done_later() {
    let fixture = Fixture::new().await;
    let url = "/v1/completions";
    let made = fixture.batch(url, &[line("a", url, &json!({ "prompt": "hi" }))]).await;
    let retry_after = Duration::from_millis(1);
    let refusals = [
        crate::engine::request::SubmitError::QueueFull { waiting: 9, retry_after },
        crate::engine::request::SubmitError::NotReady { reason: "loading".into(), retry_after },
    ];
    for refusal in refusals {
        fixture.engine.script(testing::Script::Refuse(refusal));
    }
    fixture.engine.answer(&testing::ids("ok"));
    let batch = fixture.run(&made).await;
    assert_eq!(batch["request_counts"]["completed"], 1);
}

#[tokio::test]
async fn a_key_that_may_not_gets_no_answers() {
    let fixture = Fixture::new().await;
    let url = "/v1/completions";
    let made = fixture.batch(url, &[line("a", url, &json!({ "prompt": "hi" }))]).await;
    let account = fixture.context.accounts.authenticate(KEY).await.unwrap();
    let change = crate::auth::KeyChange {
        models: Some(vec!["another".into()]),
        ..crate::auth::KeyChange::default()
    };
    fixture.context.accounts.keys().update(account.key_id(), &change).await.unwrap();
    let batch = fixture.run(&made).await;
    let errors = fixture.file_lines(&batch["error_file_id"]).await;
    assert_eq!(errors[0]["response"]["status_code"], 403);
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "model_not_allowed");
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn a_bad_input_fails_the_batch_and_lists_why() {
    let fixture = Fixture::new().await;
    let url = "/v1/chat/completions";
    let lines = [line("a", url, &json!({})), line("a", "/v1/completions", &json!({}))];
    let made = fixture.batch(url, &lines).await;
    let batch = fixture.run(&made).await;
    assert_eq!(batch["status"], "failed");
    assert_eq!(batch["errors"]["object"], "list");
    let error = &batch["errors"]["data"][0];
    assert_eq!((&error["code"], &error["line"]), (&json!("mismatched_url"), &json!(2)));
    assert_eq!(error["param"], "url");
}

#[tokio::test]
async fn bad_batches_are_refused() {
    let fixture = Fixture::new().await;
    let file = fixture.upload("{}").await.json();
    let good = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h",
    });
    let long = "x".repeat(513);
    for (change, status, code, param) in [
        (json!({ "endpoint": "/v1/embeddings" }), 400, "invalid_value", Some("endpoint")),
        (json!({ "completion_window": "1h" }), 400, "invalid_value", Some("completion_window")),
        (json!({ "metadata": { "a": 1 } }), 400, "invalid_value", Some("metadata")),
        (json!({ "metadata": { "a": long } }), 400, "invalid_value", Some("metadata")),
        (json!({ "input_file_id": "file-x" }), 404, "file_not_found", None),
        (
            json!({ "output_expires_after": { "anchor": "created_at", "seconds": 1 } }),
            400,
            "invalid_value",
            Some("output_expires_after.seconds"),
        ),
    ] {
        let refused = fixture.post("/v1/batches", &merged(good.clone(), &change)).await;
        assert_eq!(refused.error(), (status, code.into(), param.map(str::to_owned)), "{change}");
    }
    let with_metadata = merged(good, &json!({ "metadata": { "a": "b" } }));
    let made = fixture.post("/v1/batches", &with_metadata).await.json();
    assert_eq!(made["metadata"], json!({ "a": "b" }));
    for path in ["/v1/batches/batch_x", "/v1/batches/batch_x/cancel"] {
        let request = with_key(if path.ends_with("cancel") { "POST" } else { "GET" }, path, KEY);
        assert_eq!(fixture.send(request).await.error(), (404, "batch_not_found".into(), None));
    }
    let path = format!("/v1/batches/{}/cancel", made["id"].as_str().unwrap());
    let cancelled = fixture.send(with_key("POST", &path, KEY)).await.json();
    assert_eq!(cancelled["status"], "cancelling");
    let cancelled = fixture.run(&made).await;
    assert_eq!(cancelled["status"], "cancelled");
    let file = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(fixture.delete(&file).await.status, StatusCode::OK);
}

#[tokio::test]
async fn other_keys_see_nothing() {
    let fixture = Fixture::new().await;
    let other = "sk-sy-another-key";
    fixture.context.accounts.keys().insert_plaintext("other", other).await.unwrap();
    let made = fixture.batch("/v1/completions", &[json!({})]).await;
    let (file, batch) = (made["input_file_id"].as_str().unwrap(), made["id"].as_str().unwrap());
    for (method, path) in [
        ("GET", format!("/v1/files/{file}")),
        ("GET", format!("/v1/files/{file}/content")),
        ("DELETE", format!("/v1/files/{file}")),
        ("GET", format!("/v1/batches/{batch}")),
        ("POST", format!("/v1/batches/{batch}/cancel")),
    ] {
        let answer = fixture.send(with_key(method, &path, other)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    for path in ["/v1/files", "/v1/batches"] {
        let list = fixture.send(with_key("GET", path, other)).await.json();
        assert_eq!(list["data"], json!([]), "{path}");
    }
}
