//! What Responses refuses, with which status, code and field. Nothing of it reaches the engine.

use super::*;

#[tokio::test]
async fn what_cannot_be_done_is_a_400_and_names_the_field() {
    let fixture = roomy().await;
    let tool = |tool: Value| json!({ "tools": [tool] });
    let item = |item: Value| json!({ "input": [item] });
    let many: serde_json::Map<_, _> = (0..17).map(|i| (i.to_string(), json!("x"))).collect();
    let mut wrong = Vec::new();
    for (fields, code, param) in [
        (json!({ "input": 7 }), "invalid_type", "input"),
        (json!({ "input": [] }), "invalid_value", "input"),
        (item(json!("hi")), "invalid_type", "input[0]"),
        (item(json!({ "content": "hi" })), "missing_required_parameter", "input[0].type"),
        (item(json!({ "type": "computer_call" })), "unsupported_parameter", "input[0].type"),
        (item(json!({ "type": "web_search_call" })), "unsupported_parameter", "input[0].type"),
        (item(json!({ "role": "wizard", "content": "" })), "invalid_value", "input[0]"),
        (
            item(json!({ "type": "item_reference", "id": "msg_resp_0_0" })),
            "invalid_value",
            "input[0].id",
        ),
        (json!({ "store": "yes" }), "invalid_type", "store"),
        (json!({ "background": true, "store": false }), "invalid_value", "background"),
        (json!({ "background": true, "stream": true }), "unsupported_parameter", "background"),
        (json!({ "truncation": "auto" }), "unsupported_parameter", "truncation"),
        (json!({ "include": ["file_search_call.results"] }), "unsupported_parameter", "include"),
        (json!({ "metadata": { "a": 1 } }), "invalid_value", "metadata"),
        (json!({ "metadata": many }), "invalid_value", "metadata"),
        (json!({ "conversation": "conv_1" }), "unsupported_parameter", "conversation"),
        (json!({ "prompt": { "id": "p" } }), "unsupported_parameter", "prompt"),
        (json!({ "max_output_tokens": 0 }), "invalid_value", "max_output_tokens"),
        (json!({ "temperature": 3 }), "invalid_value", "temperature"),
        (json!({ "top_p": 0 }), "invalid_value", "top_p"),
        (json!({ "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
        (json!({ "text": { "verbosity": "low" } }), "unsupported_parameter", "text.verbosity"),
        (json!({ "text": { "mood": 1 } }), "unsupported_parameter", "text.mood"),
        (json!({ "reasoning": { "mood": 1 } }), "unsupported_parameter", "reasoning.mood"),
        (json!({ "tool_choice": "required" }), "invalid_value", "tool_choice"),
        (tool(json!({ "type": "web_search" })), "unsupported_parameter", "tools[0].type"),
        (tool(json!({ "type": "mcp" })), "unsupported_parameter", "tools[0].type"),
        (tool(json!({ "type": "tool_search" })), "unsupported_parameter", "tools[0].type"),
        (
            tool(json!({ "type": "function", "name": "a", "mood": 1 })),
            "unsupported_parameter",
            "tools[0].mood",
        ),
        (tool(json!({ "type": "function", "name": "a b" })), "invalid_value", "tools[0].name"),
        (
            json!({ "previous_response_id": "resp_0" }),
            "previous_response_not_found",
            "previous_response_id",
        ),
    ] {
        let answer = fixture.respond(&fields).await;
        let expect = (400, code.to_owned(), Some(param.to_owned()));
        if answer.error() != expect {
            wrong.push(format!("{fields}: {}", answer.text()));
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn what_is_not_there_is_a_404() {
    let fixture = Fixture::new().await;
    for (method, path) in [
        ("GET", "/v1/responses/resp_0"),
        ("DELETE", "/v1/responses/resp_0"),
        ("GET", "/v1/responses/resp_0/input_items"),
        ("POST", "/v1/responses/resp_0/cancel"),
    ] {
        let answer = fixture.ask(method, path).await;
        assert_eq!(answer.error(), (404, "response_not_found".into(), None), "{method} {path}");
    }
    let model = fixture.respond(&json!({ "model": "gpt-4" })).await;
    assert_eq!(model.error(), (404, "model_not_found".into(), Some("model".into())));
}

#[tokio::test]
async fn an_error_before_the_whole_response_is_a_status() {
    let fixture = Fixture::new().await;
    let failed = vec![testing::token(100), testing::failed(GenerateError::ShuttingDown)];
    fixture.engine.script(Script::Events(failed));
    let answer = fixture.respond(&json!({})).await;
    assert_eq!(answer.error(), (503, "shutting_down".into(), None));
}
