//! Many streams at once: every answer is the one that the same request gets alone.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::Up;

const STREAMS: usize = 32;

/// Requests of different lengths, greedy and sampled, with short and long prompts.
fn requests() -> Vec<Value> {
    (0..STREAMS)
        .map(|n| {
            let prompt = match n % 4 {
                0 => format!("What is {n} plus {}?", n * 3 % 50),
                1 => "Spell the word station.".to_owned(),
                2 => "Tell me about this system.".to_owned(),
                _ => format!("Which of these is a colour? {}", "green seven train ".repeat(n * 4)),
            };
            json!({
                "model": "demo-flash",
                "messages": [{"role": "user", "content": prompt}],
                "thinking": {"type": if n % 5 == 0 { "enabled" } else { "disabled" }},
                "temperature": if n % 2 == 0 { 0.0 } else { 1.0 },
                "seed": n,
                "max_tokens": 3 + n * 2,
                "ignore_eos": n % 3 == 0,
                "logprobs": true,
            })
        })
        .collect()
}

/// What must not depend on anything but the request: text, reasoning, end, and the log probabilities' digits.
async fn choice(up: &Up, request: &Value) -> Value {
    let (status, body) = up.chat(request).await;
    assert_eq!(status, 200, "{body}");
    body["choices"][0].clone()
}

#[tokio::test]
async fn many_streams_are_each_as_if_alone_on_two_workers_and_on_four() {
    let requests = requests();
    let mut alone: Vec<Value> = Vec::new();
    for workers in ["2", "4"] {
        let up = Up::start(&["--workers", workers]).await;
        let before = alone.len();
        for request in requests.iter().skip(before) {
            alone.push(choice(&up, request).await);
        }
        let together = join_all(requests.iter().map(|request| choice(&up, request))).await;
        for (n, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(together, alone, "request {n} on {workers} workers");
        }
        up.stop().await;
    }
    let different: std::collections::BTreeSet<_> = alone.iter().map(Value::to_string).collect();
    assert!(different.len() > STREAMS / 2, "the requests must not all have one answer");
}
