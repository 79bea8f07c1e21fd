//! The tokenizer's routes.

use super::*;
use crate::testing::{ASSISTANT, BOS, END_THINK, USER, ids};

#[tokio::test]
async fn text_and_chats_become_tokens_and_tokens_text() {
    let fixture = Fixture::new().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let chat = [&[BOS, USER][..], &ids("hi"), &[ASSISTANT, END_THINK]].concat();
    for (fields, expect) in [
        (json!({ "prompt": "hi" }), [&[BOS][..], &ids("hi")].concat()),
        (json!({ "prompt": "hi", "add_special_tokens": false }), ids("hi")),
        (json!({ "prompt": "", "add_special_tokens": false }), vec![]),
        (json!({ "messages": messages }), chat.clone()),
        (json!({ "messages": messages, "add_special_tokens": false }), chat),
    ] {
        let mut body = fields;
        body["model"] = MODEL.into();
        for path in ["/v1/tokenize", "/tokenize"] {
            let answer = fixture.post(path, &body).await.json();
            assert_eq!(
                answer,
                json!({ "tokens": expect, "count": expect.len(), "max_model_len": 1024 }),
                "{body}"
            );
        }
        let text: Vec<&str> =
            vec!["<｜begin▁of▁sentence｜>", "<｜User｜>", "hi", "<｜Assistant｜>", "</think>"];
        for path in ["/v1/detokenize", "/detokenize"] {
            let body = json!({ "model": MODEL, "tokens": expect });
            let prompt =
                fixture.post(path, &body).await.json()["prompt"].as_str().unwrap().to_owned();
            let used = text.iter().filter(|part| prompt.contains(**part));
            assert_eq!(used.copied().collect::<String>(), prompt);
        }
    }
    // Also what is too long to be answered can be counted.
    let long =
        json!({ "model": MODEL, "messages": [{ "role": "user", "content": "x".repeat(5000) }] });
    assert_eq!(fixture.post("/v1/tokenize", &long).await.json()["count"], 5004);
}

#[tokio::test]
async fn what_cannot_be_tokenized_is_named() {
    let fixture = Fixture::new().await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    for (path, body, code, param) in [
        ("/v1/tokenize", json!({ "model": MODEL }), "missing_required_parameter", "prompt"),
        ("/v1/tokenize", json!({ "prompt": "a" }), "missing_required_parameter", "model"),
        ("/v1/tokenize", json!({ "model": "other", "prompt": "a" }), "model_not_found", "model"),
        (
            "/v1/tokenize",
            json!({ "model": MODEL, "messages": messages, "prompt": "a" }),
            "invalid_value",
            "prompt",
        ),
        (
            "/v1/tokenize",
            json!({ "model": MODEL, "messages": messages, "add_special_tokens": true }),
            "invalid_value",
            "add_special_tokens",
        ),
        (
            "/v1/tokenize",
            json!({ "model": MODEL, "prompt": "a", "return_token_strs": true }),
            "unsupported_parameter",
            "return_token_strs",
        ),
        ("/v1/detokenize", json!({ "model": MODEL, "tokens": [266] }), "invalid_value", "tokens"),
        ("/v1/detokenize", json!({ "model": MODEL, "tokens": ["a"] }), "invalid_type", "tokens[0]"),
    ] {
        let (_, found, found_param) = fixture.post(path, &body).await.error();
        assert_eq!((found.as_str(), found_param.as_deref()), (code, Some(param)), "{path} {body}");
    }
}

#[tokio::test]
async fn the_tokenizer_itself_is_served() {
    let fixture = Fixture::new().await;
    let answer = fixture.get("/v1/models/tiny/tokenizer").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json()["model"]["type"], "BPE");
    let unknown = fixture.get("/v1/models/org/other/tokenizer").await;
    assert_eq!(unknown.error(), (404, "model_not_found".into(), Some("model".into())));
    assert!(unknown.text().contains("`org/other`"), "{}", unknown.text());
}
