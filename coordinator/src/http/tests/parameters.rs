//! What each parameter does to the engine's request, and where OpenAI's and DeepSeek's APIs differ.

use super::chat::chunks;
use super::*;
use crate::chat::compat::Compat;
use crate::engine::request::{GenerateRequest, SamplingParams};
use crate::options::Limits;
use crate::testing::{ASSISTANT, BOS, END_THINK, USER, ids};

/// The only request that `fields` bring to the engine.
async fn request(fixture: &Fixture, fields: &Value) -> GenerateRequest {
    fixture.engine.answer(&[]);
    let answer = fixture.chat(fields).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let mut requests = fixture.engine.take_requests();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

fn tuned(thinking: &str) -> Value {
    json!({
        "thinking": { "type": thinking }, "seed": 7, "temperature": 0.25, "top_p": 0.5,
        "presence_penalty": 0.75, "frequency_penalty": -1.5, "top_k": 40, "min_p": 0.125,
        "logit_bias": { "200": -100, "9": 2.5 },
    })
}

#[tokio::test]
async fn every_sampling_parameter_acts_whether_the_model_thinks_or_not() {
    let fixture = Fixture::new().await;
    for thinking in ["enabled", "disabled"] {
        let sampling = request(&fixture, &tuned(thinking)).await.sampling;
        let expect = SamplingParams {
            temperature: 0.25,
            top_p: 0.5,
            top_k: 40,
            min_p: 0.125,
            presence_penalty: 0.75,
            frequency_penalty: -1.5,
            logit_bias: vec![(9, 2.5), (200, -100.0)],
            seed: 7,
            ..SamplingParams::default()
        };
        assert_eq!(sampling, expect, "{thinking}");
    }
}

#[tokio::test]
async fn deepseeks_api_fixes_what_it_fixes() {
    let fixture = Fixture::with(Limits::default(), Compat::DeepSeek).await;
    let neutral = SamplingParams { top_k: 40, min_p: 0.125, seed: 7, ..SamplingParams::default() };
    let logit_bias = vec![(9, 2.5), (200, -100.0)];
    let thinking = request(&fixture, &tuned("enabled")).await.sampling;
    assert_eq!(thinking, SamplingParams { logit_bias: logit_bias.clone(), ..neutral.clone() });
    let plain = request(&fixture, &tuned("disabled")).await.sampling;
    assert_eq!(plain, SamplingParams { temperature: 0.25, top_p: 0.5, logit_bias, ..neutral });

    let tool = json!({ "type": "function", "function": { "name": "f" } });
    let forced =
        json!({ "tools": [tool], "tool_choice": "required", "thinking": { "type": "enabled" } });
    for (fields, param) in [
        (json!({ "n": 2 }), "n"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (forced, "tool_choice"),
    ] {
        let error = fixture.chat(&fields).await.error();
        assert_eq!(error, (400, "invalid_value".to_owned(), Some(param.to_owned())), "{fields}");
    }

    fixture.engine.answer(&ids("ok"));
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = chunks(&fixture.chat(&asked).await);
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"]["completion_tokens"], 2);
    assert!(before.iter().all(|chunk| chunk.as_object().unwrap()["usage"].is_null()));
}

#[tokio::test]
async fn a_prompt_may_come_in_the_short_form_and_a_system_as_developer() {
    let fixture = Fixture::new().await;
    let template = |text: &[u32]| [&[BOS], text, &[ASSISTANT, END_THINK]].concat();
    let user = [&[USER][..], &ids("hi")].concat();
    let both = [&ids("be brief")[..], &user].concat();
    let messages = json!([{ "role": "developer", "content": "be brief" }, { "role": "user", "content": "hi" }]);
    for (fields, expect) in [
        (json!({ "messages": null, "prompt": "hi" }), template(&user)),
        (json!({ "messages": null, "prompt": "hi", "system_prompt": "be brief" }), template(&both)),
        (json!({ "messages": messages }), template(&both)),
    ] {
        assert_eq!(request(&fixture, &fields).await.prompt, expect, "{fields}");
    }
    for (fields, param) in
        [(json!({ "prompt": "hi" }), "prompt"), (json!({ "system_prompt": "hi" }), "system_prompt")]
    {
        let answer = fixture.chat(&fields).await;
        assert_eq!(answer.error(), (400, "invalid_value".into(), Some(param.into())));
        assert!(answer.text().contains("messages"), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_prefix_is_continued_and_only_at_the_end() {
    let fixture = Fixture::new().await;
    let user = json!({ "role": "user", "content": "hi" });
    let prefix = json!({ "role": "assistant", "content": "Once", "prefix": true });
    let open = request(&fixture, &json!({ "messages": [user, prefix] })).await;
    let expect = [&[BOS, USER][..], &ids("hi"), &[ASSISTANT, END_THINK], &ids("Once")].concat();
    assert_eq!(open.prompt, expect);
    let json_format = json!({ "type": "json_object" });
    let json_user = json!({ "role": "user", "content": "json" });
    for fields in [
        json!({ "messages": [user, prefix, user] }),
        json!({ "messages": [json_user, prefix], "response_format": json_format }),
    ] {
        assert_eq!(fixture.chat(&fields).await.error().0, 400, "{fields}");
    }
}
