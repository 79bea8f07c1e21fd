//! `/v1/completions`.

use super::chat::chunks;
use super::*;
use crate::engine::request::{FinishReason, GenerateEvent, GeneratedToken};
use crate::testing::{BOS, DSML, END_THINK, EOS, SPECIALS, Script, ids};

impl Fixture {
    async fn complete(&self, fields: &Value) -> Answer {
        let body = merged(json!({ "model": MODEL, "prompt": "Once" }), fields);
        self.post("/v1/completions", &body).await
    }
}

/// The text of a choice in a stream.
fn text_of(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().filter_map(|chunk| chunk["choices"].get(0));
    choices.filter(|it| it["index"] == index).map(|it| it["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_prompt_is_continued_as_it_is() {
    let fixture = Fixture::new().await;
    // Neither newlines at the start nor what a chat would parse is touched.
    let tokens =
        [&ids("\n\n<")[..], &[DSML], &ids("tool_calls>"), &[END_THINK], &ids(" end 🌍")].concat();
    let [think, dsml] = [END_THINK, DSML].map(|id| SPECIALS[id as usize]);
    let text = format!("\n\n<{dsml}tool_calls>{think} end 🌍");
    fixture.engine.answer(&tokens);
    let whole = fixture.complete(&json!({})).await.json();
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(whole["object"], "text_completion");
    assert!(whole["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        whole["choices"],
        json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": "stop" }])
    );
    assert_eq!(whole["usage"]["prompt_tokens"], 5);
    assert_eq!(whole["usage"]["completion_tokens"], tokens.len());
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    let sent = fixture.engine.take_requests().remove(0);
    assert_eq!(sent.prompt, [&[BOS][..], &ids("Once")].concat());
    assert_eq!((sent.max_tokens, &sent.stop_token_ids[..]), (16, &[EOS][..]));

    fixture.engine.answer(&tokens);
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let mut chunks = chunks(&fixture.complete(&asked).await);
    assert_eq!(text_of(&chunks, 0), text);
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_ne!(chunks[0]["choices"][0]["text"], "", "a completion has no role to begin with");
}

#[tokio::test]
async fn the_engine_gets_the_prompts_and_the_parameters() {
    let fixture = Fixture::new().await;
    let fields = json!({
        "prompt": ["<｜User｜>", [5, 6]], "add_special_tokens": false, "n": 2, "max_tokens": 9,
        "temperature": 0.25, "top_p": 0.5, "seed": 7, "presence_penalty": 1, "frequency_penalty": -1,
        "logit_bias": { "9": 2.5 }, "top_k": 3, "min_p": 0.5, "logprobs": 2, "ignore_eos": true,
    });
    for _ in 0..4 {
        fixture.engine.answer(&[]);
    }
    assert_eq!(fixture.complete(&fields).await.status, StatusCode::OK);
    let requests = fixture.engine.take_requests();
    let choices = requests.iter().map(|request| (request.prompt.clone(), request.sampling.choice));
    let prompts = [ids("<｜User｜>"), vec![5, 6]];
    let expect = prompts.iter().flat_map(|prompt| [0, 1].map(|choice| (prompt.clone(), choice)));
    assert!(choices.eq(expect), "{requests:?}");
    let sampling = &requests[3].sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.25, 0.5, 7));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.0, -1.0));
    assert_eq!(
        (sampling.top_k, sampling.min_p, &sampling.logit_bias[..]),
        (3, 0.5, &[(9, 2.5)][..])
    );
    assert_eq!((sampling.logprobs, sampling.num_top_logprobs), (true, 2));
    assert_eq!((requests[3].max_tokens, &requests[3].stop_token_ids[..]), (9, &[][..]));
}

#[tokio::test]
async fn prompts_and_choices_are_numbered_and_echoed() {
    let fixture = Fixture::new().await;
    let texts = ["1", "22", "333", "4444"];
    for stream in [false, true] {
        for text in texts {
            fixture.engine.answer(&ids(text));
        }
        let fields = json!({ "prompt": ["a", ids("b")], "n": 2, "echo": true, "stream": stream });
        let answer = fixture.complete(&fields).await;
        let expect = ["a1", "a22", "b333", "b4444"];
        if stream {
            let chunks = chunks(&answer);
            assert!((0..4).all(|index| text_of(&chunks, index) == expect[index]), "{chunks:?}");
            assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 10);
        } else {
            let whole = answer.json();
            for (index, text) in expect.iter().enumerate() {
                assert_eq!(whole["choices"][index]["index"], index);
                assert_eq!(whole["choices"][index]["text"], *text);
            }
            // Of each prompt once: `a` behind the token that begins a sequence, and `b` alone.
            assert_eq!(whole["usage"]["prompt_tokens"], 3);
            assert_eq!(whole["usage"]["completion_tokens"], 10);
        }
    }
}

#[tokio::test]
async fn stop_sequences_cut_exactly_and_logprobs_have_the_legacy_form() {
    let fixture = Fixture::new().await;
    fixture.engine.answer(&ids("one EN END two"));
    let answer = fixture.complete(&json!({ "stop": ["END"] })).await.json();
    assert_eq!(answer["choices"][0]["text"], "one EN ");

    let token = |text: &str, logprob| {
        let token_id = ids(text)[0];
        let top_logprobs = vec![(ids("z")[0], -0.125), (token_id, logprob)];
        GenerateEvent::Token(GeneratedToken { token_id, logprob: Some(logprob), top_logprobs })
    };
    for (num, top) in
        [(0, json!(null)), (2, json!([{ "z": -0.125, "a": -0.5 }, { "z": -0.125, "b": -0.25 }]))]
    {
        let finished = GenerateEvent::Finished(FinishReason::Length);
        fixture.engine.script(Script::Events(vec![token("a", -0.5), token("b", -0.25), finished]));
        let answer = fixture.complete(&json!({ "logprobs": num })).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(
            answer["choices"][0]["logprobs"],
            json!({
                "tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25], "top_logprobs": top,
                "text_offset": [0, 1],
            })
        );
    }
}

#[tokio::test]
async fn what_cannot_be_completed_is_refused() {
    let fixture = Fixture::new().await;
    let long = "x".repeat(2000);
    for (fields, code, param) in [
        (json!({ "prompt": [] }), "invalid_value", "prompt"),
        (json!({ "prompt": "", "add_special_tokens": false }), "invalid_value", "prompt"),
        (json!({ "prompt": [266] }), "invalid_value", "prompt"),
        (json!({ "prompt": ["a", "b"], "n": 9 }), "invalid_value", "n"),
        (json!({ "prompt": long }), "context_length_exceeded", "prompt"),
        (json!({ "max_tokens": 2000 }), "context_length_exceeded", "prompt"),
        (json!({ "temperature": 3 }), "invalid_value", "temperature"),
        (json!({ "stop": "" }), "invalid_value", "stop"),
        (json!({ "model": "gpt-4" }), "model_not_found", "model"),
    ] {
        let answer = fixture.complete(&fields).await;
        let (_, found_code, found_param) = answer.error();
        assert_eq!((found_code.as_str(), found_param.as_deref()), (code, Some(param)), "{fields}");
    }
    assert!(fixture.engine.take_requests().is_empty());
    // A default that does not fit is cut, as for chats.
    fixture.engine.answer(&[]);
    assert_eq!(
        fixture.complete(&json!({ "prompt": "x".repeat(1018) })).await.status,
        StatusCode::OK
    );
    assert_eq!(fixture.engine.take_requests()[0].max_tokens, 5);
}
