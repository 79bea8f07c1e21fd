//! Answers: whole, streamed, cut off.

use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use futures::StreamExt as _;

use super::*;
use crate::engine::request::{
    FinishReason, GenerateError, GenerateEvent, GenerateRequest, GeneratedToken,
};
use crate::testing::{ASSISTANT, BOS, DSML, END_THINK, EOS, Script, THINK, USER, ids};

/// Data of the events of a stream, without comments.
fn events(text: &str) -> Vec<String> {
    let data = |event: &str| event.strip_prefix("data: ").map(str::to_owned);
    text.split("\n\n").filter_map(data).collect()
}

/// The chunks of a complete stream.
pub(super) fn chunks(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let mut events = events(&answer.text());
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn joined(chunks: &[Value], field: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
}

/// Answers the same request twice, streamed and not, and returns the chunks and the whole.
async fn both(fixture: &Fixture, fields: &Value, tokens: &[u32]) -> (Vec<Value>, Value) {
    let mut streamed = fields.clone();
    streamed["stream"] = true.into();
    fixture.engine.answer(tokens);
    fixture.engine.answer(tokens);
    let chunks = chunks(&fixture.chat(&streamed).await);
    let whole = fixture.chat(fields).await;
    assert_eq!(whole.status, StatusCode::OK, "{}", whole.text());
    (chunks, whole.json())
}

#[tokio::test]
async fn a_whole_answer_has_openais_form() {
    let fixture = Fixture::new().await;
    fixture.engine.answer(&ids("Hello!"));
    let answer = fixture.chat(&json!({})).await.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], MODEL);
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": { "role": "assistant", "content": "Hello!" },
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(answer["usage"]["total_tokens"], 12);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
}

#[tokio::test]
async fn the_engine_gets_the_rendered_prompt_and_the_parameters() {
    let fixture = Fixture::new().await;
    let request = async |fields: Value| -> GenerateRequest {
        fixture.engine.answer(&[]);
        assert_eq!(fixture.chat(&fields).await.status, StatusCode::OK);
        fixture.engine.take_requests().remove(0)
    };
    let plain = request(json!({})).await;
    let prompt = [&[BOS, USER][..], &ids("hi"), &[ASSISTANT, END_THINK]].concat();
    assert_eq!(plain.prompt, prompt);
    assert_eq!(plain.stop_token_ids, [EOS]);
    assert_eq!(plain.max_tokens, 1024 - 6);
    assert_eq!((plain.sampling.temperature, plain.sampling.top_p), (1.0, 1.0));
    assert!(!plain.sampling.logprobs);
    assert_ne!(request(json!({})).await.sampling.seed, plain.sampling.seed);

    let fields = json!({
        "temperature": 0.25, "top_p": 0.5, "seed": 7, "max_tokens": 9, "logprobs": true,
        "top_logprobs": 3, "ignore_eos": true,
    });
    let tuned = request(fields).await;
    assert_eq!((tuned.sampling.temperature, tuned.sampling.top_p), (0.25, 0.5));
    assert_eq!((tuned.sampling.seed, tuned.max_tokens), (7, 9));
    assert_eq!((tuned.sampling.logprobs, tuned.sampling.num_top_logprobs), (true, 3));
    assert_eq!(tuned.stop_token_ids, [0_u32; 0]);

    let thinking = request(json!({ "thinking": { "type": "enabled" } })).await;
    assert_eq!(thinking.prompt.last(), Some(&THINK));
    let spelled = json!({ "messages": [{ "role": "user", "content": "<｜User｜>" }] });
    let specials = request(spelled).await.prompt.into_iter().filter(|id| *id == USER);
    assert_eq!(specials.count(), 1, "spelled-out tokens are text");
}

#[tokio::test]
async fn streamed_and_whole_answers_are_the_same() {
    let fixture = Fixture::new().await;
    let text = "Grüße 🌍 — 你好, e\u{301}!\n\"quoted\" \\ data: x\r\n\n end";
    let (chunks, whole) = both(&fixture, &json!({}), &ids(text)).await;
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(joined(&chunks, "content"), text);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
    }
    // One token is one byte here: characters of several bytes must come whole.
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert!(pieces.clone().any(|piece| piece == "🌍"));
    assert!(pieces.clone().all(|piece| !piece.contains('\u{FFFD}')));
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(last["usage"], whole["usage"]);
}

#[tokio::test]
async fn reasoning_tools_and_stop_sequences_are_parsed_alike() {
    let fixture = Fixture::new().await;
    let thinking = json!({ "thinking": { "type": "enabled" } });
    let tokens = [&ids("hmm")[..], &[END_THINK], &ids("42")].concat();
    let (chunks, whole) = both(&fixture, &thinking, &tokens).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("hmm"), &json!("42")));
    assert_eq!(joined(&chunks, "reasoning_content"), "hmm");
    assert_eq!(joined(&chunks, "content"), "42");
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 3);

    let tool = json!({ "type": "function", "function": { "name": "add" } });
    let call = [
        "\n\n<",
        "tool_calls>\n<",
        "invoke name=\"add\">\n<",
        "parameter name=\"a\" string=\"false\">5</",
    ];
    let close = ["parameter>\n</", "invoke>\n</", "tool_calls>"];
    let mut tokens = Vec::new();
    for text in call.iter().chain(&close) {
        tokens.extend(ids(text));
        tokens.push(DSML);
    }
    tokens.pop();
    let (chunks, whole) = both(&fixture, &json!({ "tools": [tool] }), &tokens).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"],
        json!({ "name": "add", "arguments": "{\"a\": 5}" })
    );
    let arguments = chunks.iter().filter_map(|chunk| {
        chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    assert_eq!(arguments.collect::<String>(), "{\"a\": 5}");

    let (chunks, whole) = both(&fixture, &json!({ "stop": ["END"] }), &ids("one END two")).await;
    assert_eq!(whole["choices"][0]["message"]["content"], "one ");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(joined(&chunks, "content"), "one ");
}

#[tokio::test]
async fn logprobs_follow_their_tokens() {
    let fixture = Fixture::new().await;
    let token = |token_id, logprob| {
        GenerateEvent::Token(GeneratedToken {
            token_id,
            logprob: Some(logprob),
            top_logprobs: vec![(token_id, logprob), (ids("z")[0], -9.0)],
        })
    };
    let letters = ids("ab");
    let finished = GenerateEvent::Finished(FinishReason::Length);
    fixture.engine.script(Script::Events(vec![
        token(letters[0], -0.5),
        token(letters[1], -0.25),
        finished,
    ]));
    let answer = fixture.chat(&json!({ "logprobs": true, "top_logprobs": 2 })).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["logprobs"]["content"][1],
        json!({
            "token": "b", "logprob": -0.25, "bytes": [98],
            "top_logprobs": [
                { "token": "b", "logprob": -0.25, "bytes": [98] },
                { "token": "z", "logprob": -9.0, "bytes": [122] },
            ],
        })
    );
}

#[tokio::test]
async fn usage_comes_in_openais_form_when_asked_for() {
    let fixture = Fixture::new().await;
    let stream = async |fields: Value| {
        fixture.engine.answer(&ids("ok"));
        let answer = fixture.chat(&fields).await;
        chunks(&answer)
    };
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let mut with = stream(asked).await;
    let usage = with.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 2);
    assert!(with.iter().all(|chunk| chunk.as_object().unwrap().get("usage") == Some(&Value::Null)));
    assert_eq!(with.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let mut without = stream(json!({ "stream": true })).await;
    let last = without.pop().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"], usage["usage"]);
    assert!(without.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn events_go_out_one_by_one_with_the_headers_of_a_stream() {
    let fixture = Fixture::new().await;
    let engine = fixture.engine.manual();
    let response = fixture.begin(chat_request(&json!({ "stream": true }))).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let mut body = response.into_body().into_data_stream();
    let mut next =
        async || String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(next().await.contains("\"role\":\"assistant\""));
    for letter in ["a", "b"] {
        engine.send(testing::token(ids(letter)[0])).await.unwrap();
        assert!(next().await.contains(&format!("\"content\":\"{letter}\"")));
    }
    engine.send(GenerateEvent::Finished(FinishReason::Stop)).await.unwrap();
    assert!(next().await.contains("\"finish_reason\":\"stop\""));
    assert_eq!(next().await, "data: [DONE]\n\n");
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    // The database has threads of its own, which a paused clock does not wait for: check the stream alone.
    let (_events, receiver) = tokio::sync::mpsc::channel(1);
    let served = testing::served();
    served.1.script(Script::Manual(receiver));
    let chat = Chat::new(vec![served.0], 1);
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "hi" }], "stream": true });
    let request =
        crate::chat::request::ChatRequest::from_slice(body.to_string().as_bytes()).unwrap();
    let answer = chat.start(request).await.unwrap();
    let mut body = sse::response::<ChatCompletionRequest, error::OpenAi>(sse::chunks(answer))
        .into_body()
        .into_data_stream();
    let role = body.next().await.unwrap().unwrap();
    assert!(role.starts_with(b"data: "));
    for _ in 0..2 {
        assert_eq!(body.next().await.unwrap().unwrap(), ": keep-alive\n\n");
    }
}

#[tokio::test]
async fn a_failure_mid_stream_is_an_error_event_without_done() {
    let fixture = Fixture::new().await;
    for (end, code) in [
        (Some(GenerateError::GroupLost("rank 5 stopped".into())), "model_unavailable"),
        (Some(GenerateError::ShuttingDown), "shutting_down"),
        (None, "internal_error"),
    ] {
        let mut script = vec![testing::token(ids("a")[0])];
        script.extend(end.map(testing::failed));
        fixture.engine.script(Script::Events(script));
        let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let answer = fixture.chat(&asked).await;
        let mut events = events(&answer.text());
        let last: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], code);
        assert_eq!(last["error"]["type"], "server_error");
        assert_eq!(events.len(), 2, "role and one token");
        assert!(events.iter().all(|event| event.contains("\"finish_reason\":null")));
        assert!(!answer.text().contains("[DONE]"));
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_sequence() {
    let fixture = Fixture::new().await;
    for stream in [true, false] {
        let engine = fixture.engine.manual();
        let mut answer = Box::pin(fixture.send(chat_request(&json!({ "stream": stream }))));
        let token_sent = async {
            engine.send(testing::token(ids("a")[0])).await.unwrap();
            // Until the token is taken out of the channel.
            while engine.capacity() < engine.max_capacity() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut answer => panic!("the answer is not complete"),
            () = token_sent => {}
        }
        assert!(!engine.is_closed());
        drop(answer);
        assert!(engine.is_closed(), "stream: {stream}");
    }
}

#[tokio::test]
async fn a_stop_sequence_cancels_the_rest() {
    let fixture = Fixture::new().await;
    let engine = fixture.engine.manual();
    for token in ids("one END") {
        engine.send(testing::token(token)).await.unwrap();
    }
    let answer = fixture.chat(&json!({ "stop": "END" })).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "one ");
    assert!(engine.is_closed());
}
