//! The life of a cluster: it comes up, serves, survives, and leaves nothing behind.

use serde_json::{Value, json};
use switchyard_proto::inference::inference_client::InferenceClient;
use switchyard_proto::inference::{ChatRequest, Message};

use crate::harness::{QUESTION, Up, eventually, is_alive, question, signal};

#[tokio::test]
async fn it_comes_up_serves_and_leaves_nothing() {
    let up = Up::start(&[]).await;
    assert_eq!(up.process.children().len(), 2, "one process per worker");
    assert!(!up.answer().await.is_empty());
    assert_eq!(up.get("/health/live").await.0, 200);
    assert_eq!(up.get("/health/ready").await.0, 200);
    assert!(up.get("/metrics").await.1.contains("switchyard_"));
    up.stop().await;
}

#[tokio::test]
async fn grpc_gives_the_same_answer() {
    let up = Up::start(&[]).await;
    let expected = up.answer().await;
    let mut client = InferenceClient::connect(format!("http://{}", up.grpc)).await.unwrap();
    let message =
        Message { role: "user".to_owned(), content: QUESTION.to_owned(), ..Message::default() };
    let chat = ChatRequest {
        model: "demo-flash".to_owned(),
        messages: vec![message],
        temperature: Some(0.0),
        max_tokens: Some(8),
        thinking: Some(false),
        ..ChatRequest::default()
    };
    let refusal = client.complete(chat.clone()).await.expect_err("no key");
    assert_eq!(refusal.code(), tonic::Code::Unauthenticated);

    let with_key = || {
        let mut request = tonic::Request::new(chat.clone());
        let bearer = format!("Bearer {}", up.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    };
    let whole = client.complete(with_key()).await.unwrap().into_inner();
    assert_eq!(whole.choices[0].message.as_ref().unwrap().content, expected);
    let mut stream = client.chat(with_key()).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        text.push_str(&chunk.content);
    }
    assert_eq!(text, expected);
    up.stop().await;
}

#[tokio::test]
async fn the_development_key_stays_the_same_and_a_chosen_one_is_not_shown() {
    let up = Up::start(&["--workers", "1"]).await;
    let stored = std::fs::read_to_string(up.data().join("dev-key")).unwrap();
    assert_eq!(stored.trim(), up.key);
    up.stop().await;

    let mut up = Up::start(&["--workers", "1", "--api-key", "sk-chosen-by-me"]).await;
    assert!(!up.process.output.contains("sk-chosen-by-me"));
    up.key = "sk-chosen-by-me".to_owned();
    up.answer().await;
    assert!(!up.data().join("dev-key").exists());
    up.stop().await;
}

#[tokio::test]
async fn two_models_are_served_side_by_side() {
    let other = crate::harness::copy_of_demo_model();
    let other = format!("other={}", other.path().display());
    let up = Up::start(&["--workers", "1", "--model", &other]).await;
    let mut request = question(8);
    let (_, first) = up.chat(&request).await;
    request["model"] = json!("other");
    let (status, second) = up.chat(&request).await;
    assert_eq!(status, 200);
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
    assert_eq!(second["model"], "other");
    request["model"] = json!("third");
    let (status, error) = up.chat(&request).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    up.stop().await;
}

#[tokio::test]
async fn without_a_model_both_demo_models_are_served() {
    let up = Up::start_with(&["--workers", "1"]).await;
    assert_eq!(up.process.children().len(), 2, "one worker of each model");
    assert!(!up.answer().await.is_empty());
    let mut request = question(256);
    request["model"] = json!("demo-pro");
    request.as_object_mut().unwrap().remove("thinking");
    let (status, body) = up.chat(&request).await;
    assert_eq!(status, 200, "{body}");
    let message = &body["choices"][0]["message"];
    assert_ne!(message["reasoning_content"].as_str().unwrap(), "", "it thinks unless told not to");
    assert_ne!(message["content"].as_str().unwrap(), "");
    up.stop().await;
}

#[tokio::test]
async fn a_running_answer_may_finish_after_ctrl_c() {
    let up = Up::start(&[]).await;
    let mut request = question(120);
    request["stream"] = json!(true);
    request["ignore_eos"] = json!(true);
    let mut stream = up.stream(&request).await;
    stream.chunk().await.unwrap().unwrap();
    up.process.signal("INT").await;
    let mut text = String::new();
    while let Some(bytes) = stream.chunk().await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("[DONE]"), "{text}");
    let (status, output) = up.process.wait().await;
    assert!(status.success(), "{output}");
}

#[tokio::test]
async fn a_worker_that_dies_is_started_again() {
    let mut up = Up::start(&[]).await;
    let before = up.answer().await;
    let victim = up.process.children()[0];
    signal(victim, "KILL").await;
    up.process.line_with("killed by signal 9").await;
    eventually("two workers run again", async || {
        let workers = up.process.children();
        workers.len() == 2 && !workers.contains(&victim)
    })
    .await;
    eventually("the cluster is ready again", async || up.chat(&question(8)).await.0 == 200).await;
    assert_eq!(up.answer().await, before);
    up.stop().await;
}

#[tokio::test]
async fn streams_outlive_the_death_of_a_worker() {
    let up = Up::start(&[]).await;
    let mut request = question(160);
    request["ignore_eos"] = json!(true);
    let (_, undisturbed) = up.chat(&request).await;
    let undisturbed = undisturbed["choices"][0]["message"]["content"].as_str().unwrap().to_owned();

    // One stream on each rank, so that whoever dies holds one of them.
    request["stream"] = json!(true);
    let mut streams = [up.stream(&request).await, up.stream(&request).await];
    let mut texts = [String::new(), String::new()];
    for (stream, text) in streams.iter_mut().zip(&mut texts) {
        while text.matches("\"content\":").count() < 8 {
            let bytes = stream.chunk().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    signal(up.process.children()[1], "KILL").await;
    for (stream, text) in streams.iter_mut().zip(&mut texts) {
        while let Some(bytes) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let events = text.split("data: ").filter_map(|event| serde_json::from_str(event).ok());
        let pieces = events.filter_map(|event: Value| {
            event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        });
        assert_eq!(pieces.collect::<String>(), undisturbed);
    }
    up.stop().await;
}

#[tokio::test]
async fn workers_end_when_up_is_killed() {
    let up = Up::start(&[]).await;
    let workers = up.process.children();
    assert_eq!(workers.len(), 2);
    up.process.signal("KILL").await;
    eventually("the workers have ended", async || workers.iter().all(|pid| !is_alive(*pid))).await;
}
