use serde_json::json;

use super::*;
use crate::testing;

fn request(fields: &[(&str, serde_json::Value)]) -> ChatRequest {
    let mut body =
        json!({ "model": testing::MODEL, "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in fields {
        body[name] = value.clone();
    }
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
        let mut dir = testing::ModelDir::new();
        dir.config["max_position_embeddings"] = context.into();
        let engine = testing::ScriptedEngine::new();
        engine.set(|status| status.max_model_len = context);
        let served = Served {
            model: Model::load(&dir.options()).unwrap(),
            engine: Arc::clone(&engine) as Arc<dyn Generate>,
        };
        engine.answer(&[]);
        Chat::new(vec![served], 1).start(request(&fields)).await.unwrap();
        assert_eq!(engine.take_requests()[0].max_tokens, expect, "{fields:?}");
    }
}
