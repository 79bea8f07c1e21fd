//! What the processes write about requests, and what they never write.

use serde_json::{Value, json};

use crate::harness::{QUESTION, Up, http_client, question};

/// The value of a field in the innermost span of a line that has it.
fn in_spans<'a>(line: &'a Value, field: &str) -> Option<&'a Value> {
    line["spans"].as_array()?.iter().rev().find_map(|span| span.get(field))
}

#[tokio::test]
async fn every_line_of_a_request_has_its_id_and_none_its_text() {
    let logs = ["--log", "info,switchyard_coordinator=trace,switchyard_worker=trace"];
    let up = Up::start(&[&["--workers", "2", "--log-format", "json"], &logs[..]].concat()).await;
    let client = http_client();
    let mut requests = [(question(8), 200), (question(8), 200), (question(8), 400)];
    requests[1].0["stream"] = json!(true);
    requests[2].0["temperature"] = json!(QUESTION);
    let mut answers = Vec::new();
    for (number, (request, status)) in requests.iter().enumerate() {
        let id = format!("logged-{number}");
        let ask = client.post(format!("{}/v1/chat/completions", up.url)).bearer_auth(&up.key);
        let answer = ask.header("x-request-id", &id).json(request).send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], id.as_str());
        assert_eq!(answer.status().as_u16(), *status);
        answers.push(answer.text().await.unwrap());
    }
    let whole: Value = serde_json::from_str(&answers[0]).unwrap();
    let said = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(said.len() > 4, "{said}");
    let key = up.key.clone();
    let output = up.stop().await;

    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<_> = lines.collect();
    for number in 0..requests.len() {
        let id = json!(format!("logged-{number}"));
        let of_request = lines.iter().filter(|line| in_spans(line, "request.id") == Some(&id));
        assert!(of_request.count() > 0, "{id} is not in\n{output}");
    }
    let is_told = |line: &&Value| {
        let names = line["spans"].as_array().into_iter().flatten().map(|span| &span["name"]);
        names.into_iter().any(|name| name == "request")
    };
    for line in lines.iter().filter(is_told) {
        assert!(in_spans(line, "request.id").is_some(), "no request id: {line}");
    }
    for secret in [QUESTION, "capital", said.trim(), &key] {
        let found = lines.iter().find(|line| line.to_string().contains(secret));
        assert!(found.is_none(), "{secret:?} is logged: {found:?}");
    }
}
