//! What is refused, with which status, code and field. Nothing of it reaches the engine.

use std::time::Duration;

use futures::StreamExt as _;

use super::*;
use crate::auth::Terms;
use crate::engine::request::SubmitError;
use crate::options::Limits;
use crate::testing::{CONTEXT_LENGTH, Script};

#[tokio::test]
async fn bad_parameters_are_400_and_name_the_field() {
    let fixture = Fixture::new().await;
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    let mut wrong = Vec::new();
    for (fields, code, param) in [
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (json!({ "messages": "hi" }), "invalid_type", "messages"),
        (
            json!({ "messages": [{ "role": "wizard", "content": "" }] }),
            "invalid_value",
            "messages[0].role",
        ),
        (json!({ "messages": [{ "role": "user", "content": 7 }] }), "invalid_value", "messages[0]"),
        (
            json!({ "messages": [{ "role": "tool", "content": "", "tool_call_id": "x" }] }),
            "invalid_value",
            "messages",
        ),
        (json!({ "messages": [{ "role": "assistant" }] }), "invalid_value", "messages"),
        (json!({ "temperature": 100 }), "invalid_value", "temperature"),
        (json!({ "temperature": -0.1 }), "invalid_value", "temperature"),
        (json!({ "top_p": 0 }), "invalid_value", "top_p"),
        (json!({ "top_p": 1.1 }), "invalid_value", "top_p"),
        (json!({ "n": 17 }), "invalid_value", "n"),
        (json!({ "n": 0 }), "invalid_value", "n"),
        (json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "max_tokens": -5 }), "invalid_value", "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), "invalid_value", "max_tokens"),
        (json!({ "presence_penalty": 3 }), "invalid_value", "presence_penalty"),
        (json!({ "frequency_penalty": -2.5 }), "invalid_value", "frequency_penalty"),
        (json!({ "seed": 1_u64 << 63 }), "invalid_value", "seed"),
        (json!({ "stop": "" }), "invalid_value", "stop"),
        (json!({ "stop": ["a", ""] }), "invalid_value", "stop[1]"),
        (json!({ "stop": vec!["a"; 17] }), "invalid_value", "stop"),
        (json!({ "top_logprobs": 2 }), "invalid_value", "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "stream_options": { "include_usage": true } }), "invalid_value", "stream_options"),
        (
            json!({ "response_format": { "type": "json_object" } }),
            "invalid_value",
            "response_format",
        ),
        (json!({ "tools": [tool, tool] }), "invalid_value", "tools"),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }),
            "invalid_value",
            "tools[0].function.name",
        ),
        (
            json!({ "tools": [tool], "tool_choice": { "type": "function", "function": { "name": "g" } } }),
            "invalid_value",
            "tool_choice",
        ),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (json!({ "logit_bias": { "266": 1 } }), "invalid_value", "logit_bias"),
    ] {
        let answer = fixture.chat(&fields).await;
        let expect = (400, code.to_owned(), Some(param.to_owned()));
        if answer.error() != expect || answer.json()["error"]["type"] != "invalid_request_error" {
            wrong.push(format!("{fields}: {}", answer.text()));
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn prompts_and_answers_beyond_the_context_are_refused() {
    let fixture = Fixture::new().await;
    let prompt = |bytes: usize| json!([{ "role": "user", "content": "x".repeat(bytes) }]);
    // Four tokens of the template come on top.
    let most = CONTEXT_LENGTH as usize - 4;
    for fields in [
        json!({ "max_tokens": CONTEXT_LENGTH }),
        json!({ "max_tokens": u32::MAX }),
        json!({ "messages": prompt(most) }),
        json!({ "messages": prompt(100_000) }),
        json!({ "messages": prompt(4_000_000) }),
        json!({ "messages": prompt(most - 5), "max_tokens": 6 }),
    ] {
        let answer = fixture.chat(&fields).await;
        assert_eq!(
            answer.error(),
            (400, "context_length_exceeded".into(), Some("messages".into())),
            "{}",
            answer.text()
        );
        assert!(answer.text().contains("maximum context length is 1024"), "{}", answer.text());
    }
    assert!(fixture.engine.take_requests().is_empty());

    for (fields, max_tokens) in [
        (json!({ "messages": prompt(most - 1) }), 1),
        (json!({ "messages": prompt(most - 5), "max_tokens": 5 }), 5),
        (json!({ "messages": prompt(most - 5) }), 5),
    ] {
        fixture.engine.answer(&testing::ids("ok"));
        assert_eq!(fixture.chat(&fields).await.status, StatusCode::OK);
        let request = &fixture.engine.take_requests()[0];
        assert_eq!(request.max_tokens, max_tokens);
        assert!(request.prompt.len() + max_tokens as usize <= CONTEXT_LENGTH as usize);
    }
    // A group with less room than the model lowers the limit.
    fixture.engine.set(|status| status.max_model_len = 100);
    let answer = fixture.chat(&json!({ "messages": prompt(100) })).await;
    assert_eq!(answer.error().1, "context_length_exceeded");
}

#[tokio::test]
async fn bodies_that_are_no_json_are_400_and_say_where() {
    let fixture = Fixture::new().await;
    for (body, code, message) in [
        (&b"\xff\xfe{}"[..], "invalid_utf8", "offset 0"),
        (b"{\"model\": \"tiny\",}", "invalid_json", "line 1 column 18"),
        (b"", "invalid_json", "line 1 column 0"),
        (b"null", "invalid_type", "must be a JSON object"),
    ] {
        let answer = fixture.send(post(body)).await;
        assert_eq!(answer.error(), (400, code.into(), None));
        assert!(answer.text().contains(message), "{}", answer.text());
    }
}

#[tokio::test]
async fn oversized_bodies_are_413() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let fixture = Fixture::with_limits(limits).await;
    let body = |len: usize| vec![b' '; len];
    for len in [1001, 4000, 8001, 100_000] {
        let answer = fixture.send(post(body(len))).await;
        assert_eq!(answer.error(), (413, "request_too_large".into(), None), "{len}");
        assert!(answer.text().contains("1000 bytes"));
    }
    assert_eq!(fixture.send(post(body(1000))).await.error().1, "invalid_json");

    // A small oversized body is read to its end, so that its sender sees the answer; a huge one is not waited for.
    let announced = |len: usize| {
        let mut request =
            post(Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()));
        request.headers_mut().insert("content-length", len.into());
        request
    };
    let answer = fixture.send(announced(8001)).await;
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (413, "close"));
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 100]));
    let answer = fixture.send(post(Body::from_stream(endless))).await;
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (413, "close"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_one_that_breaks_is_400() {
    let limits = Limits { body_read_timeout: Duration::ZERO, ..Limits::default() };
    let fixture = Fixture::with_limits(limits).await;
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let answer = fixture.send(post(Body::from_stream(never))).await;
    assert_eq!(answer.error(), (408, "request_timeout".into(), None));

    let broken = futures::stream::iter([
        Ok(b"{".to_vec()),
        Err(std::io::Error::other("the line went dead")),
    ]);
    let fixture = Fixture::new().await;
    let answer = fixture.send(post(Body::from_stream(broken))).await;
    assert_eq!(answer.error(), (400, "incomplete_body".into(), None));
}

#[tokio::test]
async fn other_content_types_are_415() {
    let fixture = Fixture::new().await;
    for (content_type, status) in [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 400),
        ("Application/JSON", 400),
        ("application/vnd.api+json", 400),
    ] {
        let mut request = post("");
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        assert_eq!(fixture.send(request).await.error().0, status, "{content_type}");
    }
    let mut request = post("");
    request.headers_mut().remove("content-type");
    assert_eq!(fixture.send(request).await.error().1, "invalid_json");
}

#[tokio::test]
async fn missing_wrong_and_revoked_keys_are_401() {
    let fixture = Fixture::new().await;
    let (record, revoked) =
        fixture.context.accounts.keys().create(&Terms::default()).await.unwrap();
    fixture.context.accounts.keys().revoke(record.id).await.unwrap();
    let revoked = format!("Bearer {}", revoked.expose());
    let headers =
        ["", "Bearer", "Bearer ", "Bearer sk-sy-wrong", "Basic abc", &revoked, KEY, "Bearer a b"];
    for path in ["/v1/models", "/v1/models/tiny", "/v1/chat/completions"] {
        for header in headers {
            let mut request = if path.ends_with("completions") {
                Request::post(path)
            } else {
                Request::get(path)
            };
            if !header.is_empty() {
                request = request.header("authorization", header);
            }
            let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answer.error(), (401, "invalid_api_key".into(), None), "{path} {header}");
            assert_eq!(answer.json()["error"]["type"], "authentication_error");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert!(!answer.text().contains("sk-sy"), "a key in a message");
        }
    }
    let lower_case = Request::get("/v1/models").header("authorization", format!("bearer {KEY}"));
    let answer = fixture.send(lower_case.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn unknown_models_paths_and_methods_are_404_and_405() {
    let fixture = Fixture::new().await;
    let answer = fixture.chat(&json!({ "model": "gpt-4" })).await;
    assert_eq!(answer.error(), (404, "model_not_found".into(), Some("model".into())));
    assert!(answer.text().contains("`gpt-4` does not exist; this server has tiny"));
    assert_eq!(fixture.get("/v1/nothing").await.error(), (404, "unknown_url".into(), None));
    assert_eq!(fixture.get("/nothing").await.error().1, "unknown_url");
    let answer = fixture.get("/v1/chat/completions").await;
    assert_eq!(answer.error(), (405, "method_not_allowed".into(), None));
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn a_full_server_is_429_until_a_request_ends() {
    let limits = Limits { in_flight_requests_max: 1, ..Limits::default() };
    let fixture = Fixture::with_limits(limits).await;
    let _events = fixture.engine.manual();
    let first = fixture.begin(chat_request(&json!({ "stream": true }))).await;
    let answer = fixture.chat(&json!({})).await;
    assert_eq!(answer.error(), (429, "rate_limit_exceeded".into(), None));
    assert_eq!(answer.header("retry-after"), "1");
    drop(first);
    fixture.engine.answer(&[]);
    assert_eq!(fixture.chat(&json!({})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn refusals_of_the_engine_keep_their_status_and_retry() {
    let fixture = Fixture::new().await;
    let retry_after = Duration::from_secs(3);
    for (error, status, code, retry) in [
        (SubmitError::QueueFull { waiting: 7, retry_after }, 429, "rate_limit_exceeded", "3"),
        (
            SubmitError::NotReady { reason: "loading".into(), retry_after },
            503,
            "model_not_ready",
            "3",
        ),
        (
            SubmitError::TooLong { needed: 1_025, available: 1_024 },
            400,
            "context_length_exceeded",
            "",
        ),
    ] {
        for stream in [false, true] {
            let message = error.to_string();
            fixture.engine.script(Script::Refuse(error.clone()));
            let answer = fixture.chat(&json!({ "stream": stream })).await;
            let (got_status, got_code, _) = answer.error();
            assert_eq!((got_status, got_code.as_str()), (status, code));
            assert_eq!(answer.header("retry-after"), retry);
            assert!(answer.text().contains(&message), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn an_error_before_the_whole_answer_is_a_status() {
    use crate::engine::request::GenerateError;
    let fixture = Fixture::new().await;
    for (error, code) in [
        (GenerateError::GroupLost("rank 1 died".into()), "model_unavailable"),
        (GenerateError::ShuttingDown, "shutting_down"),
    ] {
        let failed = vec![testing::token(100), testing::failed(error)];
        fixture.engine.script(Script::Events(failed));
        let answer = fixture.chat(&json!({})).await;
        assert_eq!(answer.error(), (503, code.into(), None));
        assert_eq!(answer.header("retry-after"), "1");
    }
    fixture.engine.script(Script::Events(vec![testing::token(100)]));
    assert_eq!(fixture.chat(&json!({})).await.error(), (500, "internal_error".into(), None));
}

#[tokio::test]
async fn a_client_that_leaves_while_sending_reaches_nothing() {
    let fixture = Fixture::new().await;
    let half = futures::stream::iter([Ok::<_, std::io::Error>(b"{\"model\"".to_vec())])
        .chain(futures::stream::pending());
    let request = fixture.begin(post(Body::from_stream(half)));
    assert!(futures::FutureExt::now_or_never(request).is_none());
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn compressed_bodies_are_not_unpacked() {
    let fixture = Fixture::new().await;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/batches"] {
        for encoding in ["gzip", "br", "identity, gzip", "zstd"] {
            let mut request = post_to(path, vec![0x1f, 0x8b, 8, 0]);
            request.headers_mut().insert("content-encoding", encoding.parse().unwrap());
            let answer = fixture.send(request).await;
            assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} {encoding}");
        }
    }
    let mut request = post("{}");
    request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let answer = fixture.send(request).await;
    assert_eq!(answer.error(), (415, "unsupported_content_encoding".into(), None));
    fixture.engine.answer(&testing::ids("ok"));
    let mut request = chat_request(&json!({}));
    request.headers_mut().insert("content-encoding", "identity".parse().unwrap());
    assert_eq!(fixture.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn deeply_nested_json_is_refused() {
    let fixture = Fixture::new().await;
    for depth in [1_000, 1_000_000] {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let within = format!("{{\"model\": \"{MODEL}\", \"messages\": {nested}}}");
        for body in [nested, within, "{\"a\":".repeat(depth)] {
            for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"]
            {
                let answer = fixture.send(post_to(path, body.clone())).await;
                assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {depth}");
            }
        }
    }
    assert!(fixture.engine.take_requests().is_empty());
}
