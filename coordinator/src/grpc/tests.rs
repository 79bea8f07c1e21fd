use futures::StreamExt as _;
use serde_json::json;
use switchyard_proto::inference::inference_server::Inference as _;
use switchyard_proto::inference::response_format::Kind;
use switchyard_proto::inference::{
    ChatRequest, JsonObject, JsonSchema, ListModelsRequest, Message, ResponseFormat,
    TokenizeRequest, Tool, ToolCall, tokenize_request,
};
use tonic::{Code, Request};

use super::*;
use crate::auth::{Change, KeyChange};
use crate::chat::request::ChatRequest as Checked;
use crate::engine::request::{
    FinishReason, GenerateError, GenerateEvent, GeneratedToken, SubmitError,
};
use crate::engine::status::Phase;
use crate::options::Limits;
use crate::testing::{self, END_THINK, Fixture, KEY, MODEL, Script, ids};

impl Fixture {
    fn inference(&self) -> Inference {
        Inference::new(self.context.chat.clone(), self.context.accounts.clone())
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), ..Message::default() }
}

fn chat() -> ChatRequest {
    ChatRequest {
        model: MODEL.into(),
        messages: vec![message("user", "hi")],
        ..ChatRequest::default()
    }
}

fn format(kind: Kind) -> Option<ResponseFormat> {
    Some(ResponseFormat { kind: Some(kind) })
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    request
}

#[tokio::test]
async fn streamed_and_whole_answers_are_the_same_as_over_http() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    let tokens = [&ids("hm — ok")[..], &[END_THINK], &ids("42 🌍")].concat();
    let request = ChatRequest { thinking: Some(true), seed: Some(7), ..chat() };

    fixture.engine.answer(&tokens);
    let stream = inference.chat(with_key(request.clone())).await.unwrap().into_inner();
    let chunks: Vec<_> = stream.map(Result::unwrap).collect().await;
    let text: String = chunks.iter().map(|chunk| chunk.content.as_str()).collect();
    let reasoning: String = chunks.iter().map(|chunk| chunk.reasoning_content.as_str()).collect();
    assert_eq!((reasoning.as_str(), text.as_str()), ("hm — ok", "42 🌍"));
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last.finish_reason, "stop");
    assert!(before.iter().all(|chunk| chunk.finish_reason.is_empty() && chunk.usage.is_none()));

    fixture.engine.answer(&tokens);
    let whole = inference.complete(with_key(request)).await.unwrap().into_inner();
    let [choice] = &whole.choices[..] else { panic!("one choice") };
    let answer = choice.message.clone().unwrap();
    assert_eq!((answer.reasoning_content, answer.content), (reasoning, text));
    assert_eq!(choice.finish_reason, "stop");
    assert_eq!(whole.usage, last.usage);
    assert_eq!(whole.usage.unwrap().reasoning_tokens, 9);
    assert!(whole.system_fingerprint.starts_with("fp_"));

    let body = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "hi" }], "seed": 7,
        "thinking": { "type": "enabled" },
    });
    fixture.engine.answer(&tokens);
    let http = Checked::from_slice(body.to_string().as_bytes()).unwrap();
    fixture.context.chat.start(http).await.unwrap().collect().await.unwrap();
    let requests = fixture.engine.take_requests();
    assert!(requests.iter().all(|request| format!("{request:?}") == format!("{:?}", requests[0])));
}

/// A request with something in every field.
fn full_request() -> ChatRequest {
    ChatRequest {
        messages: vec![
            message("system", "be brief"),
            message("user", "json"),
            Message {
                tool_calls: vec![ToolCall {
                    id: "c1".into(),
                    name: "add".into(),
                    arguments: "{}".into(),
                }],
                reasoning_content: "hm".into(),
                ..message("assistant", "")
            },
            Message { tool_call_id: "c1".into(), ..message("tool", "5") },
        ],
        temperature: Some(0.5),
        top_p: Some(0.25),
        max_tokens: Some(9),
        stop: vec!["END".into()],
        seed: Some(7),
        logprobs: Some(true),
        top_logprobs: Some(2),
        thinking: Some(false),
        reasoning_effort: "low".into(),
        response_format: format(Kind::JsonObject(JsonObject {})),
        tools: vec![Tool {
            name: "add".into(),
            description: "adds".into(),
            parameters_json: r#"{"type": "object"}"#.into(),
            strict: true,
        }],
        tool_choice: "auto".into(),
        tool_choice_function: String::new(),
        ignore_eos: true,
        presence_penalty: Some(0.5),
        frequency_penalty: Some(-0.5),
        top_k: Some(3),
        min_p: Some(0.125),
        logit_bias: [(7, 1.5)].into(),
        n: Some(2),
        parallel_tool_calls: Some(false),
        user: "ann".into(),
        metadata: [("team".to_owned(), "red".to_owned())].into(),
        model: MODEL.into(),
    }
}

#[test]
fn every_field_reaches_its_json_name() {
    let converted = request::convert(full_request(), true).unwrap();
    let body = json!({
        "model": MODEL,
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "json" },
            {
                "role": "assistant", "reasoning_content": "hm",
                "tool_calls": [
                    { "id": "c1", "type": "function", "function": { "name": "add", "arguments": "{}" } },
                ],
            },
            { "role": "tool", "content": "5", "tool_call_id": "c1" },
        ],
        "temperature": 0.5, "top_p": 0.25, "max_tokens": 9, "stop": ["END"], "seed": 7, "logprobs": true,
        "top_logprobs": 2, "thinking": { "type": "disabled" }, "reasoning_effort": "low",
        "response_format": { "type": "json_object" },
        "tools": [{
            "type": "function",
            "function": {
                "name": "add", "description": "adds", "parameters": { "type": "object" }, "strict": true,
            },
        }],
        "tool_choice": "auto", "ignore_eos": true, "stream": true, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "top_k": 3, "min_p": 0.125, "logit_bias": { "7": 1.5 }, "n": 2,
        "parallel_tool_calls": false, "user": "ann", "metadata": { "team": "red" },
    });
    let expect = Checked::from_slice(body.to_string().as_bytes()).unwrap();
    assert_eq!(format!("{converted:?}"), format!("{expect:?}"));
}

#[test]
fn every_response_format_is_the_one_of_http() {
    let schema = JsonSchema {
        name: "point".into(),
        schema_json: r#"{"type": "object"}"#.into(),
        strict: true,
    };
    for (kind, expect) in [
        (
            Kind::JsonSchema(schema),
            json!({
                "type": "json_schema",
                "json_schema": { "name": "point", "schema": { "type": "object" }, "strict": true },
            }),
        ),
        (Kind::Regex("[ab]+".into()), json!({ "type": "regex", "regex": "[ab]+" })),
        (
            Kind::Grammar("start: \"a\"".into()),
            json!({ "type": "grammar", "grammar": "start: \"a\"" }),
        ),
    ] {
        let request = ChatRequest { response_format: format(kind), ..chat() };
        let converted = request::convert(request, false).unwrap();
        let body = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": "hi" }], "response_format": expect,
            "ignore_eos": false, "stream": false,
        });
        let expect = Checked::from_slice(body.to_string().as_bytes()).unwrap();
        assert_eq!(format!("{converted:?}"), format!("{expect:?}"));
    }
}

#[tokio::test]
async fn several_choices_come_with_their_indices() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    let request = ChatRequest { n: Some(2), ..chat() };
    let answer = |texts: [&str; 2]| texts.map(|text| fixture.engine.answer(&ids(text)));

    answer(["a", "b"]);
    let whole = inference.complete(with_key(request.clone())).await.unwrap().into_inner();
    let texts: Vec<_> = whole
        .choices
        .into_iter()
        .map(|choice| (choice.index, choice.message.unwrap().content))
        .collect();
    assert_eq!(texts, [(0, "a".to_owned()), (1, "b".to_owned())]);

    answer(["a", "b"]);
    let stream = inference.chat(with_key(request)).await.unwrap().into_inner();
    let chunks: Vec<_> = stream.map(Result::unwrap).collect().await;
    for (index, expect) in [(0, "a"), (1, "b")] {
        let of_choice = chunks.iter().filter(|chunk| chunk.index == index);
        assert_eq!(of_choice.map(|chunk| chunk.content.as_str()).collect::<String>(), expect);
    }
    let finished: Vec<_> = chunks.iter().filter(|it| !it.finish_reason.is_empty()).collect();
    assert_eq!(finished.len(), 2);
    assert_eq!(chunks.iter().filter(|chunk| chunk.usage.is_some()).count(), 1);
    assert!(chunks.last().unwrap().usage.is_some());
}

#[tokio::test]
async fn refusals_carry_a_status_a_code_and_the_field() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    for (request, status, code, param) in [
        (ChatRequest { model: "gpt-4".into(), ..chat() }, Code::NotFound, "model_not_found", None),
        (
            ChatRequest { messages: Vec::new(), ..chat() },
            Code::InvalidArgument,
            "invalid_value",
            Some("messages"),
        ),
        (
            ChatRequest { temperature: Some(9.0), ..chat() },
            Code::InvalidArgument,
            "invalid_value",
            Some("temperature"),
        ),
        (
            ChatRequest { top_p: Some(f32::NAN), ..chat() },
            Code::InvalidArgument,
            "invalid_value",
            Some("top_p"),
        ),
        (
            ChatRequest { response_format: Some(ResponseFormat::default()), ..chat() },
            Code::InvalidArgument,
            "missing_required_parameter",
            Some("response_format"),
        ),
        (
            ChatRequest { logit_bias: [(7, f32::NAN)].into(), ..chat() },
            Code::InvalidArgument,
            "invalid_value",
            Some("logit_bias"),
        ),
        (
            ChatRequest {
                tools: vec![Tool { parameters_json: "{".into(), ..Tool::default() }],
                ..chat()
            },
            Code::InvalidArgument,
            "invalid_json",
            Some("tools[0].parameters_json"),
        ),
        (
            ChatRequest { tool_choice: "none".into(), tool_choice_function: "f".into(), ..chat() },
            Code::InvalidArgument,
            "invalid_value",
            Some("tool_choice_function"),
        ),
        (
            ChatRequest { max_tokens: Some(5000), ..chat() },
            Code::InvalidArgument,
            "context_length_exceeded",
            None,
        ),
    ] {
        let streamed = inference.chat(with_key(request.clone())).await.err().unwrap();
        let whole = inference.complete(with_key(request)).await.unwrap_err();
        for error in [streamed, whole] {
            assert_eq!(error.code(), status, "{error}");
            let field = |name| error.metadata().get(name).map(|value| value.to_str().unwrap());
            assert_eq!((field("error-code"), field("error-param")), (Some(code), param), "{error}");
        }
    }
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn refusals_of_the_engine_say_when_to_retry() {
    let limits = Limits { in_flight_requests_max: 1, ..Limits::default() };
    let fixture = Fixture::with_limits(limits).await;
    let inference = fixture.inference();
    let retry_after = std::time::Duration::from_secs(3);
    for (error, status) in [
        (SubmitError::QueueFull { waiting: 7, retry_after }, Code::ResourceExhausted),
        (SubmitError::NotReady { reason: "loading".into(), retry_after }, Code::Unavailable),
    ] {
        fixture.engine.script(Script::Refuse(error));
        let refused = inference.complete(with_key(chat())).await.unwrap_err();
        assert_eq!(refused.code(), status);
        assert_eq!(refused.metadata().get("retry-after").unwrap(), "3");
    }
    let events = fixture.engine.manual();
    let stream = inference.chat(with_key(chat())).await.unwrap();
    let refused = inference.complete(with_key(chat())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(!events.is_closed());
    drop(stream);
    assert!(events.is_closed(), "a client that hangs up cancels its sequence");
}

#[tokio::test]
async fn a_failure_mid_stream_is_a_status_and_no_finish() {
    let fixture = Fixture::new().await;
    let lost = GenerateError::GroupLost("rank 5 stopped".into());
    let script = vec![testing::token(ids("a")[0]), testing::failed(lost)];
    fixture.engine.script(Script::Events(script));
    let stream = fixture.inference().chat(with_key(chat())).await.unwrap().into_inner();
    let items: Vec<_> = stream.collect().await;
    let (last, before) = items.split_last().unwrap();
    let error = last.as_ref().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("rank 5 stopped"));
    assert!(before.iter().all(|chunk| chunk.as_ref().unwrap().finish_reason.is_empty()));
}

#[tokio::test]
async fn logprobs_are_carried() {
    let fixture = Fixture::new().await;
    let token_id = ids("a")[0];
    let token =
        GeneratedToken { token_id, logprob: Some(-0.5), top_logprobs: vec![(token_id, -0.5)] };
    fixture.engine.script(Script::Events(vec![
        GenerateEvent::Token(token),
        GenerateEvent::Finished(FinishReason::Length),
    ]));
    let request = ChatRequest { logprobs: Some(true), top_logprobs: Some(1), ..chat() };
    let answer = fixture.inference().complete(with_key(request)).await.unwrap().into_inner();
    let [choice] = &answer.choices[..] else { panic!("one choice") };
    assert_eq!(choice.finish_reason, "length");
    let [logprob] = &choice.logprobs[..] else { panic!("one token") };
    assert_eq!(
        (logprob.token.as_str(), logprob.logprob, &logprob.bytes[..]),
        ("a", -0.5, &b"a"[..])
    );
    assert_eq!(logprob.top_logprobs[0].token, "a");
}

#[tokio::test]
async fn a_keys_limits_hold_here_too() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    let keys = fixture.context.accounts.keys();
    let id = keys.check(KEY).await.unwrap().key_id();
    let concurrent_requests = Change::Set(std::num::NonZeroU32::MIN);
    keys.update(id, &KeyChange { concurrent_requests, ..KeyChange::default() }).await.unwrap();
    let events = fixture.engine.manual();
    let running = inference.chat(with_key(chat())).await.unwrap();
    let refused = inference.complete(with_key(chat())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get("error-code").unwrap(), "rate_limit_exceeded");
    assert_eq!(refused.metadata().get("retry-after").unwrap(), "1");
    inference.list_models(with_key(ListModelsRequest {})).await.unwrap();
    drop((running, events));
    fixture.engine.answer(&ids("ok"));
    inference.complete(with_key(chat())).await.unwrap();

    keys.update(id, &KeyChange { active: Some(false), ..KeyChange::default() }).await.unwrap();
    let refused = inference.list_models(with_key(ListModelsRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.metadata().get("error-code").unwrap(), "inactive_api_key");
}

#[tokio::test]
async fn every_method_needs_a_key() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    for header in [None, Some("Bearer sk-sy-wrong"), Some("Basic abc")] {
        fn request<T>(message: T, header: Option<&str>) -> Request<T> {
            let mut request = Request::new(message);
            if let Some(header) = header {
                request.metadata_mut().insert("authorization", header.parse().unwrap());
            }
            request
        }
        let codes = [
            inference.chat(request(chat(), header)).await.err().unwrap(),
            inference.complete(request(chat(), header)).await.unwrap_err(),
            inference.tokenize(request(TokenizeRequest::default(), header)).await.unwrap_err(),
            inference.list_models(request(ListModelsRequest {}, header)).await.unwrap_err(),
        ];
        for error in codes {
            assert_eq!(error.code(), Code::Unauthenticated);
            assert_eq!(error.metadata().get("error-code").unwrap(), "invalid_api_key");
        }
    }
    assert!(fixture.engine.take_requests().is_empty());
}

#[tokio::test]
async fn tokenize_gives_what_chat_would_send() {
    let fixture = Fixture::new().await;
    let inference = fixture.inference();
    fixture.engine.answer(&[]);
    inference.complete(with_key(chat())).await.unwrap();
    let sent = fixture.engine.take_requests().remove(0).prompt;
    let tokenize = async |model: &str, input| {
        let request = TokenizeRequest { model: model.into(), input };
        inference.tokenize(with_key(request)).await.map(|answer| answer.into_inner().token_ids)
    };
    let as_chat = |chat| Some(tokenize_request::Input::Chat(Box::new(chat)));
    assert_eq!(tokenize("", as_chat(chat())).await.unwrap(), sent);
    let nameless = ChatRequest { model: String::new(), ..chat() };
    assert_eq!(tokenize(MODEL, as_chat(nameless)).await.unwrap(), sent);
    let text = |text: &str| Some(tokenize_request::Input::Text(text.into()));
    assert_eq!(tokenize(MODEL, text("a</think>")).await.unwrap(), ids("a</think>"));
    assert_eq!(tokenize("gpt-4", text("a")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(tokenize(MODEL, None).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn models_are_listed_with_their_readiness() {
    let fixture = Fixture::new().await;
    for (phase, ready) in [(Phase::Ready, true), (Phase::Forming, false)] {
        fixture.engine.set(|status| status.phase = phase);
        let request = with_key(ListModelsRequest {});
        let models = fixture.inference().list_models(request).await.unwrap().into_inner().models;
        assert_eq!((models[0].id.as_str(), models[0].context_length), (MODEL, 1024));
        assert_eq!(models[0].ready, ready);
    }
}

#[tokio::test(start_paused = true)]
async fn health_follows_the_groups_and_the_drain() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

    let (served, engine) = testing::served();
    engine.set(|status| status.phase = Phase::Forming);
    let chat = std::sync::Arc::new(crate::chat::Chat::new(vec![served], 1));
    let draining = tokio_util::sync::CancellationToken::new();
    let (reporter, server) = tonic_health::server::health_reporter();
    let follow = tokio::spawn(health::follow(chat, reporter, draining.clone()));
    let mut client = HealthClient::new(server);
    for service in ["", "switchyard.v1.Inference"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = loop {
            // Until the follower has reported for the first time.
            tokio::task::yield_now().await;
            if let Ok(watch) = client.watch(request.clone()).await {
                break watch.into_inner();
            }
        };
        let mut expect = async |status: ServingStatus| {
            while watch.message().await.unwrap().unwrap().status() != status {}
        };
        engine.set(|status| status.phase = Phase::Forming);
        expect(ServingStatus::NotServing).await;
        engine.set(|status| status.phase = Phase::Ready);
        expect(ServingStatus::Serving).await;
        if service.is_empty() {
            continue;
        }
        draining.cancel();
        expect(ServingStatus::NotServing).await;
    }
    follow.await.unwrap();
}
