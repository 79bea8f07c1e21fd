//! What Anthropic's dialect refuses, and its form of errors.

use super::*;
use crate::engine::request::{GenerateError, SubmitError};

#[tokio::test]
async fn what_cannot_be_done_is_a_400() {
    let fixture = roomy().await;
    let tool = |fields: Value| {
        let tool = json!({ "name": "add", "input_schema": { "type": "object" } });
        json!({ "tools": [merged(tool, &fields)] })
    };
    let user = |block: Value| json!({ "messages": [{ "role": "user", "content": [block] }] });
    let mut wrong = Vec::new();
    for (fields, mentions) in [
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "hi" }), "messages"),
        (json!({ "messages": [{ "role": "wizard", "content": "" }] }), "messages[0]"),
        (user(json!({ "type": "hologram" })), "hologram"),
        (user(json!({ "type": "tool_result", "tool_use_id": "x" })), "tool_use_id"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "temperature": 3 }), "temperature"),
        (json!({ "top_k": "many" }), "top_k"),
        (json!({ "stop_sequences": [""] }), "stop"),
        (json!({ "container": "c_1" }), "container"),
        (json!({ "speed": "fast" }), "speed"),
        (json!({ "diagnostics": { "previous_message_id": null } }), "diagnostics"),
        (json!({ "mcp_servers": [{ "url": "x" }] }), "mcp_servers"),
        (
            json!({ "context_management": { "edits": [{ "type": "clear_tool_uses_20250919" }] } }),
            "context_management",
        ),
        (json!({ "thinking": { "type": "enabled", "display": "omitted" } }), "thinking.display"),
        (json!({ "thinking": { "type": "enabled", "mood": 1 } }), "thinking.mood"),
        (
            json!({ "output_config": { "task_budget": { "total": 1 } } }),
            "output_config.task_budget",
        ),
        (json!({ "output_config": { "format": { "type": "xml" } } }), "output_config.format"),
        (
            json!({ "output_config": { "format": { "type": "json_schema" } } }),
            "output_config.format",
        ),
        (json!({ "metadata": { "user_id": 7 } }), "metadata"),
        (tool(json!({ "strict": "very" })), "tools[0].strict"),
        (tool(json!({ "input_examples": [{ "a": 5 }] })), "tools[0].input_examples"),
        (tool(json!({ "type": "bash_20250124" })), "server tools"),
        (tool(json!({ "input_schema": 7 })), "schema"),
        (tool(json!({ "name": "a b" })), "tools[0].name"),
    ] {
        let answer = fixture.message(&fields).await;
        let error = answer.anthropic_error();
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        if error != (400, "invalid_request_error".to_owned()) || !message.contains(mentions) {
            wrong.push(format!("{fields}: {}", answer.text()));
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn errors_take_the_dialects_form_at_every_layer() {
    let fixture = Fixture::new().await;
    let send = async |request: Request<Body>| fixture.send(request).await.anthropic_error();
    let mut wrong_key = message_request("/v1/messages", &json!({}));
    wrong_key.headers_mut().insert("x-api-key", "sk-sy-wrong".parse().unwrap());
    assert_eq!(send(wrong_key).await, (401, "authentication_error".into()));
    let mut no_key = message_request("/v1/messages", &json!({}));
    no_key.headers_mut().remove("x-api-key");
    assert_eq!(send(no_key).await, (401, "authentication_error".into()));
    let mut bearer = message_request("/v1/messages", &json!({}));
    bearer.headers_mut().remove("x-api-key");
    bearer.headers_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    fixture.engine.answer(&ids("ok"));
    assert_eq!(fixture.send(bearer).await.status, StatusCode::OK);

    let model = message_request("/v1/messages", &json!({ "model": "gpt-4" }));
    assert_eq!(send(model).await, (404, "not_found_error".into()));
    let path = message_request("/v1/messages/batches", &json!({}));
    assert_eq!(send(path).await, (404, "not_found_error".into()));
    let get = Request::get("/v1/messages").header("x-api-key", KEY).body(Body::empty()).unwrap();
    assert_eq!(send(get).await, (405, "invalid_request_error".into()));
    let mut not_json = message_request("/v1/messages", &json!({}));
    *not_json.body_mut() = Body::from("{");
    assert_eq!(send(not_json).await, (400, "invalid_request_error".into()));
    let mut named = message_request("/v1/messages", &json!({ "model": "gpt-4" }));
    named.headers_mut().insert("x-request-id", "abc-1".parse().unwrap());
    assert_eq!(fixture.send(named).await.json()["request_id"], "abc-1");

    // Nothing is scripted, so the engine panics.
    assert_eq!(fixture.message(&json!({})).await.anthropic_error(), (500, "api_error".into()));
    let retry_after = Duration::from_secs(3);
    for (error, status) in [
        (SubmitError::QueueFull { waiting: 7, retry_after }, 429),
        (SubmitError::NotReady { reason: "loading".into(), retry_after }, 503),
    ] {
        fixture.engine.script(Script::Refuse(error));
        let answer = fixture.message(&json!({})).await;
        assert_eq!(answer.anthropic_error(), (status, "overloaded_error".into()));
        assert_eq!(answer.header("retry-after"), "3");
    }
    let limits = Limits { body_bytes_max: 10, ..Default::default() };
    let small = Fixture::with_limits(limits).await;
    let answer = small.message(&json!({})).await;
    assert_eq!(answer.anthropic_error(), (413, "request_too_large".into()));
}

#[tokio::test]
async fn a_failure_mid_stream_is_an_error_event_and_the_end() {
    let fixture = Fixture::new().await;
    for (end, kind) in [
        (Some(GenerateError::GroupLost("rank 5 stopped".into())), "overloaded_error"),
        (None, "api_error"),
    ] {
        let mut script = vec![testing::token(ids("a")[0])];
        script.extend(end.map(testing::failed));
        fixture.engine.script(Script::Events(script));
        let events = events(&fixture.message(&json!({ "stream": true })).await.text());
        let (name, data) = events.last().unwrap();
        assert_eq!((name.as_str(), &data["type"]), ("error", &json!("error")));
        assert_eq!(data["error"]["type"], kind);
        assert!(events.iter().all(|(name, _)| name != "message_stop" && name != "message_delta"));
    }
}
