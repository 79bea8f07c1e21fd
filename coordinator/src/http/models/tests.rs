use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::auth::KeyChange;
use crate::chat::compat::Compat;
use crate::http::router;
use crate::options::Limits;
use crate::testing::{CONTEXT_LENGTH, Fixture, KEY, MODEL, merged};

async fn get(fixture: &Fixture, path: &str) -> Value {
    let request = Request::get(path).header("authorization", format!("Bearer {KEY}"));
    let request = request.body(Body::empty()).unwrap();
    let response = router(fixture.context.clone()).oneshot(request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_model_says_what_it_is_and_what_it_takes() {
    let mut fixture = Fixture::new().await;
    let model = get(&fixture, "/v1/models/tiny").await;
    assert_eq!((&model["title"], &model["description"]), (&MODEL.into(), &Value::Null));
    assert_eq!(model["context_length"], CONTEXT_LENGTH);
    assert_eq!(model["capabilities"]["thinking"], true);
    assert_eq!(model["capabilities"]["vision"], false);
    assert_eq!(model["form_schema"]["properties"]["prompt"]["x-required"], true);
    assert_eq!(model["form_schema"]["properties"]["thinking"]["default"]["type"], "disabled");

    let options = ModelOptions {
        title: Some("Tiny".into()),
        description: Some("Made by program.".into()),
        ..ModelOptions::new(MODEL, "")
    };
    fixture.context.catalog = std::sync::Arc::new(Catalog::new(&[options]));
    let model = &get(&fixture, "/v1/models").await["data"][0];
    assert_eq!(
        (&model["title"], &model["description"]),
        (&"Tiny".into(), &"Made by program.".into())
    );
    assert_eq!(model["form_schema"]["title"], "Tiny");
}

#[tokio::test]
async fn a_key_sees_the_models_that_it_may_use() {
    let fixture = Fixture::new().await;
    let keys = fixture.context.accounts.keys();
    let id = keys.check(KEY).await.unwrap().key_id();
    for (models, shown) in [(vec!["other".to_owned()], 0), (vec![MODEL.to_owned()], 1)] {
        let change = KeyChange { models: Some(models), ..KeyChange::default() };
        keys.update(id, &change).await.unwrap();
        assert_eq!(get(&fixture, "/v1/models").await["data"].as_array().unwrap().len(), shown);
        let model = get(&fixture, "/v1/models/tiny").await;
        assert_eq!(model["error"]["code"] == "model_not_allowed", shown == 0, "{model}");
    }
}

#[tokio::test]
async fn the_form_has_no_parameter_that_the_server_ignores() {
    for (compat, has) in [(Compat::OpenAi, true), (Compat::DeepSeek, false)] {
        let fixture = Fixture::with(Limits::default(), compat).await;
        let model = get(&fixture, "/v1/models/tiny").await;
        for name in ["n", "presence_penalty", "frequency_penalty"] {
            assert_eq!(model["form_schema"]["properties"].get(name).is_some(), has, "{name}");
        }
    }
}

#[tokio::test]
async fn the_form_follows_the_room_of_the_group() {
    let fixture = Fixture::new().await;
    fixture.engine.set(|status| status.max_model_len = 100);
    let model = get(&fixture, "/v1/models/tiny").await;
    for length in [
        &model["context_length"],
        &model["max_model_len"],
        &model["form_schema"]["properties"]["max_tokens"]["maximum"],
    ] {
        assert_eq!(*length, 100);
    }
}

/// Status, and the field that a refusal names.
async fn chat(fixture: &Fixture, name: &str, value: &Value) -> (u16, String) {
    let body = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "hi" }], "logprobs": true,
    });
    let body = merged(body, &json!({ name: value }));
    let request = Request::post("/v1/chat/completions")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = router(fixture.context.clone()).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, body["error"]["param"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn the_server_takes_each_default_of_the_form_and_refuses_what_lies_outside() {
    let fixture = Fixture::new().await;
    let model = get(&fixture, "/v1/models/tiny").await;
    for (name, property) in model["form_schema"]["properties"].as_object().unwrap() {
        if let Some(default) = property.get("default") {
            fixture.engine.answer(&crate::testing::ids("ok"));
            assert_eq!(chat(&fixture, name, default).await.0, 200, "{name}: {default}");
        }
        let number = |keyword: &str| property.get(keyword).and_then(Value::as_f64);
        let below =
            number("minimum").map(|minimum| minimum - 1.0).or_else(|| number("exclusiveMinimum"));
        // Beyond the context it is not the field alone that is at fault, but the prompt and it.
        let above = number("maximum").filter(|_| name != "max_tokens").map(|most| most + 1.0);
        let part = (property["type"] == "integer").then_some(1.5);
        for outside in [below, above, part].into_iter().flatten() {
            let outside: Value = if outside.fract() == 0.0 && outside < 9e15 {
                format!("{outside}").parse::<i64>().unwrap().into()
            } else {
                outside.into()
            };
            let refused = chat(&fixture, name, &outside).await;
            assert_eq!(refused, (400, name.clone()), "{name}: {outside}");
        }
    }
}
