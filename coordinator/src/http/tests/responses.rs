//! OpenAI's Responses: answers, events, and what becomes of a request.

mod kept;
mod refusals;

use super::dialects::{self, rich_output, roomy};
use super::*;
use crate::engine::request::{FinishReason, GenerateError, GenerateRequest};
use crate::testing::{Script, complete, ids};

fn request(method: &str, path: &str, body: Option<&Value>) -> Request<Body> {
    let builder = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json");
    builder.body(body.map_or_else(Body::empty, |body| body.to_string().into())).unwrap()
}

fn response_request(path: &str, fields: &Value) -> Request<Body> {
    let body = merged(json!({ "model": MODEL, "input": "hi" }), fields);
    request("POST", path, Some(&body))
}

impl Fixture {
    async fn respond(&self, fields: &Value) -> Answer {
        self.send(response_request("/v1/responses", fields)).await
    }

    /// What reaches the engine.
    async fn response_prompt(&self, fields: &Value) -> GenerateRequest {
        self.engine.answer(&ids("ok"));
        let answer = self.respond(fields).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        self.engine.take_requests().remove(0)
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(request(method, path, None)).await
    }
}

/// Names and data of the events of a stream; checks that they are numbered.
fn events(text: &str) -> Vec<(String, Value)> {
    let events = dialects::events(text);
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], **name);
        assert_eq!(data["sequence_number"], number);
    }
    events
}

fn rich_request() -> Value {
    json!({
        "reasoning": { "effort": "high" },
        "tools": [{ "type": "function", "name": "add", "description": "Adds.", "parameters": {
            "type": "object", "properties": { "a": { "type": "integer" } } } }],
    })
}

#[tokio::test]
async fn a_whole_response_has_openais_form() {
    let fixture = Fixture::new().await;
    fixture.engine.answer(&ids("Hello!"));
    let fields = json!({
        "metadata": { "a": "b" }, "user": "u", "safety_identifier": "s", "prompt_cache_key": "p",
        "instructions": "Be brief.", "max_output_tokens": 50,
    });
    let answer = fixture.respond(&fields).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let answer = answer.json();
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("resp_"));
    assert_eq!(answer["object"], "response");
    assert_eq!((&answer["status"], &answer["error"]), (&json!("completed"), &Value::Null));
    assert!(answer["created_at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        answer["output"],
        json!([{
            "type": "message", "id": format!("msg_{id}_0"), "status": "completed",
            "role": "assistant", "phase": "final_answer",
            "content": [{ "type": "output_text", "annotations": [], "logprobs": [], "text": "Hello!" }],
        }])
    );
    assert_eq!(answer["usage"]["output_tokens"], 6);
    assert_eq!(
        answer["usage"]["total_tokens"],
        answer["usage"]["input_tokens"].as_u64().unwrap() + 6
    );
    for (field, value) in [
        ("store", json!(true)),
        ("background", json!(false)),
        ("previous_response_id", Value::Null),
        ("metadata", json!({ "a": "b" })),
        ("user", json!("u")),
        ("safety_identifier", json!("s")),
        ("prompt_cache_key", json!("p")),
        ("instructions", json!("Be brief.")),
        ("max_output_tokens", json!(50)),
        ("parallel_tool_calls", json!(true)),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }
}

#[tokio::test]
async fn a_stream_is_the_dialects_sequence_of_events() {
    let fixture = roomy().await;
    fixture.engine.answer(&rich_output());
    let mut fields = rich_request();
    fields["stream"] = true.into();
    fields["metadata"] = json!({ "a": "b" });
    let answer = fixture.respond(&fields).await;
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert!(!answer.text().contains("[DONE]"));
    let events = events(&answer.text());
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let whole: Vec<&Value> = events.iter().filter_map(|(_, data)| data.get("response")).collect();
    assert_eq!(whole.len(), 3);
    assert!(whole.iter().all(|response| response["metadata"]["a"] == "b"));
    assert_eq!(whole[0]["status"], "in_progress");
    let output = &whole[2]["output"];
    assert_eq!(output[0]["content"][0]["text"], "hm");
    assert_eq!(output[1]["content"][0]["text"], "I add.");
    assert_eq!(
        (&output[2]["name"], &output[2]["arguments"]),
        (&json!("add"), &json!("{\"a\": 5}"))
    );
    assert_eq!(whole[2]["usage"]["output_tokens_details"]["reasoning_tokens"], 2);
}

#[tokio::test]
async fn wherever_an_answer_is_cut_stream_and_whole_agree_and_show_no_markup() {
    let fixture = roomy().await;
    let output = rich_output();
    let mut streamed = rich_request();
    streamed["stream"] = true.into();
    for cut in 0..=output.len() {
        for _ in 0..2 {
            let events = complete(&output[..cut], FinishReason::Length);
            fixture.engine.script(Script::Events(events));
        }
        let events = events(&fixture.respond(&streamed).await.text());
        let (name, last) = events.last().unwrap();
        assert_eq!(name, "response.incomplete", "{cut}");
        let mut deltas = String::new();
        for (name, data) in &events {
            if name.ends_with(".delta") {
                deltas += data["delta"].as_str().unwrap();
            }
        }
        let whole = fixture.respond(&rich_request()).await.json();
        assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
        let content = |response: &Value| -> Vec<[Value; 4]> {
            let item = |item: &Value| {
                ["type", "status", "arguments", "name"].map(|field| item[field].clone())
            };
            response["output"].as_array().unwrap().iter().map(item).collect()
        };
        let text = |response: &Value| -> String {
            let items = response["output"].as_array().unwrap().iter();
            let text = |item: &Value| {
                let text = item["content"][0]["text"].as_str();
                let text = text.or_else(|| item["arguments"].as_str());
                text.unwrap_or_default().to_owned()
            };
            items.map(text).collect()
        };
        assert_eq!(content(&last["response"]), content(&whole), "{cut}");
        assert_eq!(text(&last["response"]), text(&whole), "{cut}");
        assert_eq!(deltas, text(&whole), "{cut}");
        for markup in ["DSML", "think>", "invoke", "tool_calls"] {
            assert!(!deltas.contains(markup), "{cut}: {deltas}");
        }
    }
}

#[tokio::test]
async fn a_conversation_has_the_same_prompt_in_both_dialects() {
    let fixture = roomy().await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    for effort in ["high", "none"] {
        let items = json!({
            "reasoning": { "effort": effort },
            "instructions": "Be brief.",
            "tools": [{ "type": "function", "name": "add", "description": "Adds.", "parameters": schema }],
            "input": [
                { "role": "user", "content": "What is 5 + 2?" },
                { "type": "reasoning", "summary": [], "content": [
                    { "type": "reasoning_text", "text": "I add." }] },
                { "type": "message", "role": "assistant", "content": [
                    { "type": "output_text", "text": "Let me see.", "annotations": [] }] },
                { "type": "function_call", "call_id": "call_1", "name": "add",
                  "arguments": "{\"a\": 5}" },
                { "type": "function_call_output", "call_id": "call_1", "output": "7" },
                { "role": "user", "content": [{ "type": "input_text", "text": "Thanks." }] },
            ],
        });
        let chat = json!({
            "reasoning_effort": effort,
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
        let prompt = fixture.response_prompt(&items).await.prompt;
        fixture.engine.answer(&[]);
        assert_eq!(fixture.chat(&chat).await.status, StatusCode::OK);
        assert_eq!(prompt, fixture.engine.take_requests().remove(0).prompt, "{effort}");
        let count = response_request("/v1/responses/input_tokens", &items);
        let expect = json!({ "object": "response.input_tokens", "input_tokens": prompt.len() });
        assert_eq!(fixture.send(count).await.json(), expect);
    }
    assert!(fixture.engine.take_requests().is_empty(), "counting generates nothing");
}

#[tokio::test]
async fn parameters_reach_the_sampler() {
    let fixture = Fixture::new().await;
    let request = fixture
        .response_prompt(&json!({
            "temperature": 0.25, "top_p": 0.5, "top_k": 40, "max_output_tokens": 9,
            "top_logprobs": 2, "service_tier": "auto", "truncation": "disabled",
            "reasoning": { "mode": "standard", "context": "auto", "summary": "auto", "effort": "none" },
            "tools": [], "prompt_cache_options": { "mode": "implicit" },
            "text": { "format": { "type": "text" }, "verbosity": "medium" },
        }))
        .await;
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.25, 0.5, 40));
    assert_eq!((sampling.logprobs, sampling.num_top_logprobs), (true, 2));
    assert_eq!(request.max_tokens, 9);
    let schema = json!({ "type": "json_schema", "name": "z", "schema": { "title": "Zebra" } });
    let prompt = fixture.response_prompt(&json!({ "text": { "format": schema } })).await.prompt;
    assert!(prompt.windows(5).any(|window| window == ids("Zebra")));
}

#[tokio::test]
async fn a_failure_mid_stream_is_a_failed_response() {
    let fixture = Fixture::new().await;
    for (end, message) in [
        (Some(GenerateError::GroupLost("rank 5 stopped".into())), "rank 5 stopped"),
        (None, "internal error"),
    ] {
        let mut script = vec![testing::token(ids("a")[0])];
        script.extend(end.map(testing::failed));
        fixture.engine.script(Script::Events(script));
        let answer = fixture.respond(&json!({ "stream": true })).await;
        let events = events(&answer.text());
        let (name, data) = events.last().unwrap();
        assert_eq!(name, "response.failed");
        let response = &data["response"];
        assert_eq!(response["status"], "failed");
        assert_eq!(response["error"]["code"], "server_error");
        assert!(response["error"]["message"].as_str().unwrap().contains(message));
        assert_eq!(response["output"][0]["content"][0]["text"], "a");
        let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
        assert_eq!(fixture.ask("GET", &path).await.json(), *response);
    }
}

#[tokio::test]
async fn what_is_promised_of_an_answers_form_is_a_constraint() {
    let fixture = roomy().await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
    let format = json!({ "format": { "type": "json_schema", "name": "n", "schema": schema } });
    let tools = json!([{ "type": "function", "name": "add", "parameters": schema }]);
    let named = json!({ "type": "function", "name": "add" });
    for effort in ["high", "none"] {
        for (fields, constrained) in [
            (json!({}), false),
            (json!({ "tools": tools }), false),
            (json!({ "tools": tools, "tool_choice": "required" }), true),
            (json!({ "tools": tools, "tool_choice": named }), true),
            (json!({ "tools": tools, "parallel_tool_calls": false }), true),
            (json!({ "text": format }), true),
            (json!({ "text": { "format": { "type": "json_object" } }, "input": "json" }), true),
        ] {
            let mut request = fields.clone();
            request["reasoning"] = json!({ "effort": effort });
            let constraint = fixture.response_prompt(&request).await.constraint;
            assert_eq!(constraint.is_some(), constrained, "{effort} {fields}");
            let after = constraint.and_then(|constraint| constraint.after);
            assert_eq!(after.is_some(), constrained && effort == "high", "{effort} {fields}");
        }
    }
}
