mod stored;

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use tower::ServiceExt as _;

use super::*;
use crate::engine::request::{FinishReason, GenerateEvent, GeneratedToken};
use crate::http::admin::{self, Admin};
use crate::http::{keyed, messages, open, router};
use crate::options::{AdminOptions, Secret};
use crate::testing::{self, Fixture, KEY, MODEL, merged};

/// Methods that a route could take and the document could have.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
/// A page of documentation that must have every route and parameter.
const API_PAGE: &str = include_str!("../../../../docs/api.md");

/// A server with everything on one listener.
async fn whole() -> Fixture {
    let mut fixture = Fixture::new().await;
    let options = AdminOptions { key: Secret::new("an-admin-key-of-our-own"), listen: None };
    let keys = fixture.context.accounts.keys().clone();
    fixture.context.admin = Some(Admin::new(
        keys,
        fixture.context.chat.clone(),
        &options,
        fixture.context.limits.clone(),
    ));
    fixture
}

fn every_operation() -> Vec<Operation> {
    [operations::all(), operations::of_admin()].concat()
}

async fn send(fixture: &Fixture, method: &str, path: &str, body: String) -> Response {
    let request = Request::builder()
        .method(method.to_ascii_uppercase().as_str())
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json");
    router(fixture.context.clone()).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn the_document_has_every_route_and_no_other() {
    let fixture = whole().await;
    let routes = [keyed(), messages::routes(), open()];
    let routed = routes.iter().flat_map(|routes| routes.paths()).collect::<BTreeSet<_>>();
    let without_admin = document(false);
    let of_clients = without_admin["paths"].as_object().unwrap();
    assert_eq!(of_clients.keys().cloned().collect::<BTreeSet<_>>(), routed);
    let document = document(true);
    let paths = document["paths"].as_object().unwrap();
    let admin = admin::PATHS.map(str::to_owned);
    assert_eq!(paths.keys().cloned().collect::<BTreeSet<_>>(), &routed | &admin.into());
    for (path, described) in paths {
        for method in METHODS {
            let concrete = path.replace("{id}", MODEL);
            let response = send(&fixture, method, &concrete, String::new()).await;
            let is_routed = response.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(described.get(method).is_some(), is_routed, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn what_needs_a_key_is_marked() {
    let fixture = whole().await;
    for operation in every_operation() {
        let path = operation.path.replace("{id}", MODEL);
        let status = |key: &'static str| {
            let request = Request::builder().method(operation.method.clone()).uri(path.as_str());
            let request = request.header("authorization", format!("Bearer {key}"));
            router(fixture.context.clone()).oneshot(request.body(Body::empty()).unwrap())
        };
        let mut refused = Vec::new();
        for key in ["", KEY] {
            refused.push(status(key).await.unwrap().status() == StatusCode::UNAUTHORIZED);
        }
        let needs = match operation.access {
            Access::Open => [false, false],
            Access::Key => [true, false],
            Access::AdminKey => [true, true],
        };
        assert_eq!(refused, needs, "{}", operation.path);
    }
}

#[tokio::test]
async fn the_admin_api_is_described_where_it_is() {
    for (fixture, described) in [(Fixture::new().await, false), (whole().await, true)] {
        let served = text(send(&fixture, "get", "/openapi.json", String::new()).await).await;
        let served: Value = serde_json::from_str(&served).unwrap();
        assert_eq!(served["paths"].get("/admin/v1/keys").is_some(), described);
        assert_eq!(served, document(described));
    }
}

#[test]
fn no_schema_is_of_a_request_and_of_an_answer() {
    let mut generators = Generators::new();
    for operation in every_operation() {
        describe(&operation, &mut generators);
    }
    let _ = statuses::components(&mut generators.answers);
    let requests = generators.requests.take_definitions(true);
    let answers = generators.answers.take_definitions(true);
    assert!(requests.contains_key("ChatCompletionRequest") && answers.contains_key("Message"));
    let both: Vec<_> = requests.keys().filter(|name| answers.contains_key(*name)).collect();
    assert_eq!(both, [""; 0]);
}

#[test]
fn every_reference_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        if let Value::Object(fields) = value {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| references(value, found));
        } else if let Value::Array(values) = value {
            values.iter().for_each(|value| references(value, found));
        }
    }
    let document = document(true);
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 30, "{found:?}");
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[test]
fn refusals_are_statuses_of_the_table_and_ids_differ() {
    let operations = every_operation();
    let ids: BTreeSet<_> = operations.iter().map(|operation| operation.id).collect();
    assert_eq!(ids.len(), operations.len());
    for operation in &operations {
        assert!(operation.errors().all(statuses::is_listed), "{}", operation.path);
        assert!(!operation.summary.is_empty() && !operation.description.is_empty());
        assert!(!operation.answers.is_empty());
    }
}

#[test]
fn the_page_of_the_documentation_has_every_route_and_parameter() {
    let mut missing = Vec::new();
    for operation in every_operation() {
        missing.extend((!API_PAGE.contains(operation.path)).then(|| operation.path.to_owned()));
    }
    let parameters = crate::chat::parameters::all(&crate::chat::parameters::Facts::default());
    for parameter in parameters {
        let row = format!("| `{}` |", parameter.name());
        missing.extend((!API_PAGE.contains(&row)).then_some(row));
    }
    assert_eq!(missing, [""; 0], "docs/api.md lacks these");
}

/// The schema of what the data of an event hold, apart from the mark of the end.
fn event_data<'a>(document: &'a Value, event: &Value) -> &'a Value {
    let event = event["$ref"].as_str().unwrap().trim_start_matches('#');
    let data = document.pointer(&format!("{event}/properties/data")).unwrap();
    data.get("contentSchema").unwrap_or_else(|| &data["anyOf"][1]["contentSchema"])
}

/// Whether a value fits a schema, as far as our schemas go; the first misfit otherwise.
fn misfit(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let schema = document.pointer(reference.trim_start_matches('#')).unwrap();
        return misfit(document, schema, value, at);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema.get(key).and_then(Value::as_array) {
            let mut misfits = choices.iter().map(|choice| misfit(document, choice, value, at));
            return misfits.find(Option::is_none).unwrap_or_else(|| Some(format!("{at}: {value}")));
        }
    }
    if let Some(expected) = schema.get("const") {
        return (expected != value).then(|| format!("{at}: {value}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_kind = |listed: &Value| listed == kind || (listed == "number" && kind == "integer");
    let fits = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is_kind),
        Some(one) => is_kind(one),
        None => true,
    };
    if !fits {
        return Some(format!("{at} is {kind}, not {}", schema["type"]));
    }
    let mut missing = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(name) = missing.find(|name| value.get(name).is_none()) {
        return Some(format!("{at}.{name} is missing"));
    }
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(schema), _) | (None, Some(schema)) => misfit(document, schema, value, &at),
                (None, None) if schema.get("properties").is_none() => None,
                (None, None) => Some(format!("{at} is not described")),
            }
        }),
        Value::Array(values) => {
            values.iter().find_map(|value| misfit(document, &schema["items"], value, at))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// The schema of an operation's answer.
fn schema<'a>(
    document: &'a Value,
    path: &str,
    method: &str,
    status: &str,
    kind: &str,
) -> &'a Value {
    let answer = &document["paths"][path][method]["responses"][status];
    let answer = match answer.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => answer,
    };
    &answer["content"][kind]["schema"]
}

#[tokio::test]
async fn real_answers_fit_their_schemas() {
    let fixture = Fixture::new().await;
    let document = document(true);
    for path in ["/v1/models", "/v1/models/{id}", "/health/ready", "/health/decode"] {
        let answer =
            text(send(&fixture, "get", &path.replace("{id}", MODEL), String::new()).await).await;
        let schema = schema(&document, path, "get", "200", "application/json");
        let answer = serde_json::from_str(&answer).unwrap();
        assert_eq!(misfit(&document, schema, &answer, path), None);
    }
    let unknown = text(send(&fixture, "get", "/v1/models/other", String::new()).await).await;
    let schema = schema(&document, "/v1/models/{id}", "get", "404", "application/json");
    assert_eq!(misfit(&document, schema, &serde_json::from_str(&unknown).unwrap(), "error"), None);
}

#[tokio::test]
async fn answers_of_the_other_dialects_fit_their_schemas() {
    let fixture = whole().await;
    let document = document(true);
    let (prompt, chat) = ("hi", json!([{ "role": "user", "content": "hi" }]));
    for (path, fields, part) in [
        ("/v1/completions", json!({ "prompt": [prompt, prompt], "logprobs": 1 }), "text_offset"),
        ("/v1/completions", json!({ "prompt": prompt, "stream": true }), "[DONE]"),
        ("/v1/messages", json!({ "messages": chat }), "end_turn"),
        (
            "/v1/messages",
            json!({ "messages": chat, "thinking": { "type": "enabled" } }),
            "signature",
        ),
        ("/v1/messages", json!({ "messages": chat, "stream": true }), "message_stop"),
        ("/v1/messages/count_tokens", json!({ "messages": chat }), "input_tokens"),
        ("/v1/responses", json!({ "input": prompt, "top_logprobs": 1 }), "top_logprobs"),
        (
            "/v1/responses",
            json!({ "input": prompt, "reasoning": { "effort": "high" } }),
            "reasoning_text",
        ),
        ("/v1/responses", json!({ "input": prompt, "stream": true }), "response.completed"),
        ("/v1/responses/input_tokens", json!({ "input": prompt }), "response.input_tokens"),
        ("/v1/tokenize", json!({ "prompt": prompt }), "max_model_len"),
        ("/tokenize", json!({ "messages": chat }), "count"),
        ("/v1/detokenize", json!({ "tokens": testing::ids(prompt) }), "hi"),
    ] {
        let mut body = fields;
        body["model"] = MODEL.into();
        let tokens = [testing::ids("hm"), vec![testing::END_THINK], testing::ids("42")].concat();
        let events = tokens.iter().map(|token| with_logprob(*token));
        let events =
            events.chain([GenerateEvent::Finished(FinishReason::Stop)]).collect::<Vec<_>>();
        fixture.engine.script(testing::Script::Events(events.clone()));
        fixture.engine.script(testing::Script::Events(events));
        let stream = body["stream"] == true;
        let kind = if stream { "text/event-stream" } else { "application/json" };
        let mut schema = schema(&document, path, "post", "200", kind);
        if stream {
            schema = event_data(&document, schema);
        }
        let answer = text(send(&fixture, "post", path, body.to_string()).await).await;
        assert!(answer.contains(part), "{path}: {part} is not in {answer}");
        for value in values(&answer, stream) {
            assert_eq!(misfit(&document, schema, &value, path), None, "{value}");
        }
    }
}

#[tokio::test]
async fn kept_responses_and_refusals_fit_their_schemas() {
    let fixture = whole().await;
    let document = document(true);
    fixture.engine.answer(&testing::ids("ok"));
    let body = json!({ "model": MODEL, "input": "hi" }).to_string();
    let made = text(send(&fixture, "post", "/v1/responses", body).await).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    let id = made["id"].as_str().unwrap();
    let (own, items) = ("/v1/responses/{id}", "/v1/responses/{id}/input_items");
    for (method, path, status) in [
        ("get", own, "200"),
        ("get", items, "200"),
        ("post", "/v1/responses/{id}/cancel", "400"),
        ("delete", own, "200"),
        ("get", own, "404"),
        ("get", items, "404"),
        ("post", "/v1/messages", "400"),
        ("post", "/v1/completions", "400"),
    ] {
        let response = send(&fixture, method, &path.replace("{id}", id), String::new()).await;
        assert_eq!(response.status().as_str(), status, "{method} {path}");
        let schema = schema(&document, path, method, status, "application/json");
        let answer = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(misfit(&document, schema, &answer, path), None, "{answer}");
    }
}

/// Tokens of an answer that calls a tool.
fn tool_call() -> Vec<u32> {
    let pieces = [
        "\n\n<",
        "tool_calls>\n<",
        "invoke name=\"f\">\n<",
        "parameter name=\"a\" string=\"true\">x</",
        "parameter>\n</",
        "invoke>\n</",
        "tool_calls>",
    ];
    pieces.map(testing::ids).join(&testing::DSML)
}

#[tokio::test]
async fn chat_answers_fit_their_schemas() {
    let fixture = Fixture::new().await;
    let document = document(true);
    let path = "/v1/chat/completions";
    let thoughts = [testing::ids("hm"), vec![testing::END_THINK], testing::ids("42")].concat();
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    for (fields, tokens, part) in [
        (json!({ "thinking": { "type": "enabled" } }), thoughts.clone(), "reasoning_content"),
        (json!({ "logprobs": true }), thoughts, "top_logprobs"),
        (json!({ "tools": [tool] }), tool_call(), "tool_calls"),
        (json!({ "stream_options": { "include_usage": true } }), testing::ids("a"), "\"usage\""),
    ] {
        for stream in [false, true] {
            let mut fields = fields.clone();
            if !stream {
                fields.as_object_mut().unwrap().shift_remove("stream_options");
            }
            let body = json!({
                "model": MODEL, "stream": stream, "messages": [{ "role": "user", "content": "hi" }],
            });
            let body = merged(body, &fields);
            let events = tokens.iter().map(|token| with_logprob(*token));
            let events = events.chain([GenerateEvent::Finished(FinishReason::Stop)]).collect();
            fixture.engine.script(testing::Script::Events(events));
            let answer = text(send(&fixture, "post", path, body.to_string()).await).await;
            let kind = if stream { "text/event-stream" } else { "application/json" };
            let mut schema = schema(&document, path, "post", "200", kind);
            if stream {
                schema = event_data(&document, schema);
            }
            for value in values(&answer, stream) {
                assert_eq!(misfit(&document, schema, &value, "answer"), None, "{value}");
            }
            assert!(answer.contains(part), "{part} is not in {answer}");
        }
    }
}

fn with_logprob(token_id: u32) -> GenerateEvent {
    let top_logprobs = vec![(token_id, -0.5)];
    GenerateEvent::Token(GeneratedToken { token_id, logprob: Some(-0.5), top_logprobs })
}

/// The JSON of a whole answer, or of each chunk of a streamed one.
fn values(answer: &str, stream: bool) -> Vec<Value> {
    if !stream {
        return vec![serde_json::from_str(answer).unwrap()];
    }
    let data = answer.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}
