//! A batch outlives the program that runs it.

use serde_json::{Value, json};

use crate::harness::{PATIENCE, Process, QUESTION, demo_model, http_client, program, run, up_args};

const BOUNDARY: &str = "a-boundary";
/// Requests in the batch: enough for some to be answered before the end, and some not.
const NUM_LINES: usize = 24;

/// A cluster in a data folder, by its address and key.
struct Cluster {
    process: Process,
    url: String,
    key: String,
    http: reqwest::Client,
}

impl Cluster {
    async fn start(data: &std::path::Path) -> Self {
        let args = up_args(data);
        let model = demo_model();
        let more =
            ["--model", model.to_str().unwrap(), "--workers", "1", "--batch-concurrency", "2"];
        let args: Vec<_> = args.iter().map(String::as_str).chain(more).collect();
        let mut process = Process::start(&mut program(&args));
        process.line_with("Ctrl-C stops").await;
        let field = |name: &str| {
            let mut rows = process.output.lines().map(|line| line.trim_matches(['│', ' ']));
            rows.find_map(|row| row.strip_prefix(name)).unwrap().trim().to_owned()
        };
        let (url, key) = (field("HTTP "), field("Key "));
        Self { process, url, key, http: http_client() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let response = request.bearer_auth(&self.key).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    async fn create_batch(&self) -> String {
        let lines: String = (0..NUM_LINES).map(|n| line(n).to_string() + "\n").collect();
        let part = |name: &str, value: &str| {
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n")
        };
        let form = part("name=\"purpose\"", "batch")
            + &part("name=\"file\"; filename=\"requests.jsonl\"", &lines)
            + &format!("--{BOUNDARY}--\r\n");
        let upload = self
            .http
            .post(format!("{}/files", self.url))
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(form);
        let file: Value = self.send(upload).await.json().await.unwrap();
        let batch = json!({
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        });
        let create = self.http.post(format!("{}/batches", self.url)).json(&batch);
        let batch: Value = self.send(create).await.json().await.unwrap();
        batch["id"].as_str().unwrap().to_owned()
    }

    /// Waits until the batch is as wanted.
    async fn until(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let batch = self.json(&format!("/batches/{id}")).await;
                if wanted(&batch) {
                    return batch;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap()
    }
}

fn line(number: usize) -> Value {
    json!({
        "custom_id": format!("c{number}"),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "demo-flash",
            "messages": [{ "role": "user", "content": QUESTION }],
            "thinking": { "type": "disabled" },
            "temperature": 0,
            "max_tokens": 8,
            "ignore_eos": true,
        },
    })
}

#[tokio::test]
async fn a_batch_goes_on_after_a_kill_and_no_answer_is_lost_or_charged_twice() {
    let data = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(data.path()).await;
    let id = cluster.create_batch().await;
    let some = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap() >= 2;
    let batch = cluster.until(&id, some).await;
    assert_eq!(batch["status"], "in_progress", "killed in the middle of it");
    cluster.process.signal("KILL").await;
    cluster.process.wait().await;

    let cluster = Cluster::start(data.path()).await;
    let is_over = |batch: &Value| batch["status"] == "completed";
    let batch = cluster.until(&id, is_over).await;
    let counts = json!({ "total": NUM_LINES, "completed": NUM_LINES, "failed": 0 });
    assert_eq!(batch["request_counts"], counts);
    let output = batch["output_file_id"].as_str().unwrap();
    let output = cluster.get(&format!("/files/{output}/content")).await.text().await.unwrap();
    let answers: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = answers.iter().map(|it| it["custom_id"].as_str().unwrap()).collect();
    let expected: Vec<_> = (0..NUM_LINES).map(|n| format!("c{n}")).collect();
    assert_eq!(ids, expected);
    let content = |answer: &Value| answer["response"]["body"]["choices"][0]["message"].clone();
    assert!(answers.iter().all(|it| content(it) == content(&answers[0])));

    let data = data.path().to_str().unwrap();
    let (status, usage) = run(&["keys", "--data", data, "usage", "--by", "key", "--json"]).await;
    assert!(status.success(), "{usage}");
    let usage: Value = serde_json::from_str(&usage).unwrap();
    assert_eq!(usage[0]["requests"], NUM_LINES, "{usage}");
    assert_eq!(usage[0]["completion_tokens"], 8 * NUM_LINES);
    cluster.process.signal("INT").await;
    let (status, output) = cluster.process.wait().await;
    assert!(status.success(), "{output}");
}
