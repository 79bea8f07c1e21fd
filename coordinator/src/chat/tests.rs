mod parsing;

use serde_json::json;

use super::request::ChatRequest;
use super::*;
use crate::testing;

fn request(fields: &[(&str, serde_json::Value)]) -> ChatRequest {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let body =
        json!({ "model": testing::MODEL, "messages": [{ "role": "user", "content": "hi" }] });
    let body = testing::merged(body, &serde_json::Value::Object(fields));
    ChatRequest::from_slice(body.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn an_answer_holds_its_permit_until_it_is_dropped() {
    let (served, engine) = testing::served();
    let chat = Chat::new(vec![served], 1);
    let _events = engine.manual();
    let answer = chat.start(request(&[])).await.unwrap();
    let error = chat.start(request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Busy { in_flight_max: 1 }), "{error}");
    drop(answer);
    engine.answer(&[]);
    chat.start(request(&[])).await.unwrap().collect().await.unwrap();
    // A refusal gives its permit back, too.
    let reason = "loading".to_owned();
    let retry_after = std::time::Duration::from_secs(1);
    engine.script(testing::Script::Refuse(SubmitError::NotReady { reason, retry_after }));
    chat.start(request(&[])).await.unwrap_err();
    engine.answer(&[]);
    chat.start(request(&[])).await.unwrap();
}

#[tokio::test]
async fn default_max_tokens_depend_on_thinking_and_are_cut_to_the_context() {
    for (fields, context, expect) in [
        (vec![], 1_000_000, 8192),
        (vec![("thinking", json!({ "type": "enabled" }))], 1_000_000, 65_536),
        (vec![("reasoning_effort", json!("max"))], 1_000_000, 131_072),
        (vec![], 1000, 994),
        (vec![("max_tokens", json!(500_000))], 1_000_000, 500_000),
    ] {
        let (served, engine) = testing::served_with_context(context);
        engine.answer(&[]);
        Chat::new(vec![served], 1).start(request(&fields)).await.unwrap();
        assert_eq!(engine.take_requests()[0].max_tokens, expect, "{fields:?}");
    }
}

#[tokio::test]
async fn a_forced_tool_call_is_a_rule_while_thinking_and_a_prompt_otherwise() {
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let named = json!({ "type": "function", "function": { "name": "b" } });
    for (thinking, choice, names, rule) in [
        ("enabled", json!("required"), &["a", "b"][..], true),
        ("enabled", named.clone(), &["b"], true),
        ("enabled", json!("auto"), &["a", "b"], false),
        ("disabled", json!("required"), &["a", "b"], false),
        ("disabled", named, &["b"], false),
    ] {
        let (served, _) = testing::served_with_context(10_000);
        let request = request(&[
            ("tools", json!([tool("a"), tool("b")])),
            ("tool_choice", choice.clone()),
            ("thinking", json!({ "type": thinking })),
        ]);
        let prepared = Chat::new(Vec::new(), 1).prepare(&Arc::new(served), request).await.unwrap();
        let tools = &prepared.conversation.conversation.tools;
        assert!(tools.iter().map(|tool| tool.name.as_str()).eq(names.iter().copied()), "{choice}");
        assert_eq!(prepared.extras.rules.tool_required, rule, "{choice}");
        // What is left out keeps the family's defaults.
        let sampling = prepared.extras.sampling(&prepared.conversation.inference_options);
        let top_p = if thinking == "enabled" { 0.95 } else { 1.0 };
        assert_eq!((sampling.temperature, sampling.top_p), (1.0, top_p));
        let parsing = &prepared.conversation.parsing_options;
        assert!(parsing.parse_tool_calls);
        assert_eq!(parsing.starts_in_tool_calls, thinking == "disabled", "{choice}");
    }
}
