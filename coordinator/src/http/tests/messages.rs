//! Anthropic's dialect: answers, events, and what becomes of a request.

mod refusals;
mod stream;

use super::dialects::{events, rich_output, roomy};
use super::*;
use crate::engine::request::GenerateRequest;
use crate::testing::{Script, complete, ids};

fn message_request(path: &str, fields: &Value) -> Request<Body> {
    let body = json!({
        "model": MODEL, "max_tokens": 500, "messages": [{ "role": "user", "content": "hi" }],
    });
    let body = merged(body, fields);
    Request::post(path)
        .header("x-api-key", KEY)
        .header("anthropic-version", "2023-06-01")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

impl Fixture {
    async fn message(&self, fields: &Value) -> Answer {
        self.send(message_request("/v1/messages", fields)).await
    }

    /// What reaches the engine.
    async fn message_prompt(&self, fields: &Value) -> GenerateRequest {
        self.engine.answer(&ids("ok"));
        let answer = self.message(fields).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        self.engine.take_requests().remove(0)
    }
}

impl Answer {
    /// Status and type of an error in Anthropic's shape; checks the shape.
    fn anthropic_error(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(
            body.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["type", "error", "request_id"]
        );
        assert_eq!(body["type"], "error");
        assert_eq!(body["request_id"], self.header("request-id"));
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
        (self.status.as_u16(), body["error"]["type"].as_str().unwrap().to_owned())
    }
}

fn rich_request() -> Value {
    json!({
        "thinking": { "type": "enabled", "budget_tokens": 1024 },
        "tools": [{ "type": "custom", "name": "add", "description": "Adds.", "input_schema": {
            "type": "object", "properties": { "a": { "type": "integer" } } } }],
    })
}

#[tokio::test]
async fn a_whole_message_has_anthropics_form() {
    let fixture = Fixture::new().await;
    fixture.engine.answer(&ids("Hello!"));
    let answer = fixture.message(&json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    let mut answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    answer["id"] = "msg_1".into();
    assert_eq!(
        answer,
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL,
            "content": [{ "type": "text", "text": "Hello!" }],
            "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {
                "input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "output_tokens": 6, "service_tier": "standard",
            },
        })
    );
}

#[tokio::test]
async fn a_conversation_has_the_same_prompt_in_both_dialects() {
    let fixture = roomy().await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    for thinking in ["enabled", "disabled"] {
        let messages = json!({
            "thinking": { "type": thinking, "budget_tokens": 1024 },
            "system": [
                { "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } },
            ],
            "tools": [{ "name": "add", "description": "Adds.", "input_schema": schema }],
            "messages": [
                { "role": "user", "content": "What is 5 + 2?" },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "I add.", "signature": "whatever" },
                    { "type": "text", "text": "Let me see." },
                    { "type": "tool_use", "id": "call_1", "name": "add", "input": { "a": 5 } },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "call_1", "content": "7" },
                    { "type": "text", "text": "Thanks." },
                ] },
            ],
        });
        let chat = json!({
            "thinking": { "type": thinking },
            "tools": [{ "type": "function", "function": {
                "name": "add", "description": "Adds.", "parameters": schema } }],
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "What is 5 + 2?" },
                { "role": "assistant", "content": "Let me see.", "reasoning_content": "I add.",
                  "tool_calls": [{ "id": "call_1", "type": "function", "function": {
                    "name": "add", "arguments": "{\"a\": 5}" } }] },
                { "role": "tool", "tool_call_id": "call_1", "content": "7" },
                { "role": "user", "content": "Thanks." },
            ],
        });
        let prompt = fixture.message_prompt(&messages).await.prompt;
        fixture.engine.answer(&[]);
        assert_eq!(fixture.chat(&chat).await.status, StatusCode::OK);
        assert_eq!(prompt, fixture.engine.take_requests().remove(0).prompt, "{thinking}");
        let count =
            fixture.send(message_request("/v1/messages/count_tokens", &messages)).await.json();
        assert_eq!(count, json!({ "input_tokens": prompt.len() }));
    }
    assert!(fixture.engine.take_requests().is_empty(), "counting generates nothing");
}

#[tokio::test]
async fn reasoning_comes_back_with_any_signature_or_none() {
    let fixture = Fixture::new().await;
    let again = |block: Value| {
        json!({
            "thinking": { "type": "adaptive" },
            "messages": [
                { "role": "user", "content": "hi" },
                { "role": "assistant", "content": [block, { "type": "text", "text": "yes" }] },
                { "role": "user", "content": "so?" },
            ],
        })
    };
    let mut prompts = Vec::new();
    for signature in [json!("msg_7"), json!(""), json!("Eu8DCkYIBhgC"), Value::Null] {
        let block = json!({ "type": "thinking", "thinking": "hm", "signature": signature });
        prompts.push(fixture.message_prompt(&again(block)).await.prompt);
    }
    let block = json!({ "type": "thinking", "thinking": "hm" });
    prompts.push(fixture.message_prompt(&again(block)).await.prompt);
    prompts.dedup();
    assert_eq!(prompts.len(), 1);
}

#[tokio::test]
async fn an_answer_continues_the_assistants_last_message() {
    let fixture = Fixture::new().await;
    let prefill = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": "The answer is" },
    ]);
    let prompt = fixture.message_prompt(&json!({ "messages": prefill })).await.prompt;
    assert!(prompt.ends_with(&ids("The answer is")));
    let answer = fixture
        .message(
            &json!({ "messages": prefill, "thinking": { "type": "enabled", "budget_tokens": 9 } }),
        )
        .await;
    assert_eq!(answer.anthropic_error(), (400, "invalid_request_error".into()));
}

#[tokio::test]
async fn a_demand_for_a_tool_opens_the_call_or_is_a_rule() {
    let fixture = roomy().await;
    let tools = json!([
        { "name": "add", "input_schema": { "type": "object" } },
        { "name": "sub", "input_schema": { "type": "object" } },
    ]);
    let ask = |choice: Value| json!({ "tools": tools, "tool_choice": choice });
    let opens_call = |prompt: &[u32]| prompt.ends_with(&ids("tool_calls>\n"));
    let auto = fixture.message_prompt(&ask(json!({ "type": "auto" }))).await.prompt;
    assert!(!opens_call(&auto));
    let any = fixture.message_prompt(&ask(json!({ "type": "any" }))).await.prompt;
    assert!(opens_call(&any));
    let named = fixture.message_prompt(&ask(json!({ "type": "tool", "name": "sub" }))).await.prompt;
    assert!(opens_call(&named) && named.len() < any.len(), "the other tool is left out");
    let none = fixture.message_prompt(&ask(json!({ "type": "none" }))).await.prompt;
    assert!(none.len() < named.len(), "no tool is left");

    for choice in [json!({ "type": "any" }), json!({ "type": "tool", "name": "add" })] {
        let without = fixture.message(&json!({ "tool_choice": choice })).await;
        assert_eq!(without.anthropic_error(), (400, "invalid_request_error".into()));
    }
    let unknown = fixture.message(&ask(json!({ "type": "tool", "name": "mul" }))).await;
    assert_eq!(unknown.anthropic_error(), (400, "invalid_request_error".into()));
}

#[tokio::test]
async fn parameters_reach_the_sampler() {
    let fixture = Fixture::new().await;
    let fields = json!({
        "temperature": 0.25, "top_p": 0.5, "top_k": 40, "max_tokens": 9,
        "metadata": { "user_id": "u" }, "service_tier": "auto", "speed": "standard",
        "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
    });
    let request = fixture.message_prompt(&fields).await;
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.25, 0.5, 40));
    assert_eq!(request.max_tokens, 9);

    fixture.engine.answer(&ids("one END two"));
    let answer = fixture.message(&json!({ "stop_sequences": ["END"] })).await.json();
    assert_eq!(answer["content"][0]["text"], "one ");
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("END"))
    );
}

#[tokio::test]
async fn a_schema_is_told_to_the_model() {
    let fixture = roomy().await;
    let format = json!({ "type": "json_schema", "schema": { "type": "object", "title": "Zebra" } });
    let fields = json!({ "output_config": { "format": format } });
    let prompt = fixture.message_prompt(&fields).await.prompt;
    assert!(prompt.windows(5).any(|window| window == ids("Zebra")));
}

#[tokio::test]
async fn a_schema_that_cannot_be_enforced_is_refused_by_its_name_in_this_dialect() {
    let fixture = roomy().await;
    let schema = json!({ "type": "object", "properties": { "a": { "$ref": "#/$defs/none" } }, "required": ["a"] });
    let format = json!({ "type": "json_schema", "schema": schema });
    let answer = fixture.message(&json!({ "output_config": { "format": format } })).await;
    assert_eq!(answer.anthropic_error(), (400, "invalid_request_error".to_owned()));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("output_config.format"), "{message}");
}

#[tokio::test]
async fn what_is_promised_of_an_answers_form_is_a_constraint() {
    let fixture = roomy().await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    let format = json!({ "type": "json_schema", "schema": schema });
    let tool = |strict: bool| json!([{ "name": "add", "input_schema": schema, "strict": strict }]);
    let single = json!({ "type": "auto", "disable_parallel_tool_use": true });
    for thinking in ["enabled", "disabled"] {
        for (fields, constrained) in [
            (json!({}), false),
            (json!({ "tools": tool(false) }), false),
            (json!({ "tools": tool(true) }), true),
            (json!({ "tools": tool(false), "tool_choice": { "type": "any" } }), true),
            (
                json!({ "tools": tool(false), "tool_choice": { "type": "tool", "name": "add" } }),
                true,
            ),
            (json!({ "tools": tool(false), "tool_choice": single }), true),
            (json!({ "output_config": { "format": format } }), true),
        ] {
            let mut request = fields.clone();
            request["thinking"] = json!({ "type": thinking, "budget_tokens": 1024 });
            let constraint = fixture.message_prompt(&request).await.constraint;
            assert_eq!(constraint.is_some(), constrained, "{thinking} {fields}");
            let after = constraint.and_then(|constraint| constraint.after);
            assert_eq!(
                after.is_some(),
                constrained && thinking == "enabled",
                "{thinking} {fields}"
            );
        }
    }
}
