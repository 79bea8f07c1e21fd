//! The admin API, from making a key to reading its bill.

use std::sync::Arc;

use super::super::admin::{self, Admin};
use super::*;
use crate::options::{AdminOptions, Secret};
use crate::testing::log::Log;

const ADMIN_KEY: &str = "an-admin-key-of-our-own";

/// A server with the admin API on its main listener, or on one of its own.
async fn administered(listen: Option<SocketAddr>) -> Fixture {
    let mut fixture = Fixture::new().await;
    let options = AdminOptions { key: Secret::new(ADMIN_KEY), listen };
    let keys = fixture.context.accounts.keys().clone();
    let (chat, limits) = (Arc::clone(&fixture.context.chat), Arc::clone(&fixture.context.limits));
    fixture.context.admin = Some(Admin::new(keys, chat, &options, limits));
    fixture
}

fn request(method: &str, path: &str, key: &str, body: &Value) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {key}"));
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    request.header("content-type", "application/json").body(body).unwrap()
}

impl Fixture {
    async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send(request(method, path, ADMIN_KEY, &body)).await
    }
}

#[tokio::test]
async fn a_key_is_made_read_changed_and_revoked() {
    let fixture = administered(None).await;
    let terms = json!({
        "name": "app", "expires_at": 4_000_000_000_i64, "models": [MODEL], "requests_per_minute": 60,
        "tokens_per_minute": 1000, "concurrent_requests": 4, "monthly_tokens": 5_000_000_000_i64,
    });
    let made = fixture.admin("POST", "/admin/v1/keys", terms.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let mut made = made.json();
    let key = made["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with(made["prefix"].as_str().unwrap()));
    for (field, value) in terms.as_object().unwrap() {
        assert_eq!(&made[field], value);
    }
    assert_eq!(
        (made["state"].as_str(), made["object"].as_str()),
        (Some("active"), Some("api_key"))
    );
    fixture.context.accounts.authenticate(&key).await.unwrap();

    let path = format!("/admin/v1/keys/{}", made["id"]);
    made.as_object_mut().unwrap().shift_remove("key");
    assert_eq!(fixture.admin("GET", &path, Value::Null).await.json(), made);
    let patch = json!({ "active": false, "monthly_tokens": null, "concurrent_requests": 7 });
    let changed = fixture.admin("PATCH", &path, patch).await.json();
    assert_eq!((&changed["state"], &changed["name"]), (&"disabled".into(), &"app".into()));
    assert_eq!(
        (&changed["monthly_tokens"], &changed["concurrent_requests"]),
        (&Value::Null, &7.into())
    );
    let revoked = fixture.admin("DELETE", &path, Value::Null).await.json();
    assert_eq!(revoked["state"], "revoked");

    let list = fixture.admin("GET", "/admin/v1/keys", Value::Null).await;
    assert_eq!(list.json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(list.json()["data"][1], revoked);
    assert!(!list.text().contains(&key) && !list.text().contains(KEY), "a key in a list");
}

#[tokio::test]
async fn only_the_admin_key_opens_it() {
    let fixture = administered(None).await;
    let longer = format!("{ADMIN_KEY}x");
    for path in ["/admin/v1/status", "/admin/v1/keys", "/admin/v1/keys/1", "/admin/v1/usage"] {
        for key in ["", KEY, &ADMIN_KEY[1..], &longer] {
            let answer = fixture.send(request("GET", path, key, &Value::Null)).await;
            assert_eq!(answer.error(), (401, "invalid_api_key".into(), None), "{path} {key}");
        }
    }
    // Nor does it open anything else.
    let answer = fixture.send(request("GET", "/v1/models", ADMIN_KEY, &Value::Null)).await;
    assert_eq!(answer.error().0, 401);
}

#[tokio::test]
async fn it_is_where_it_is_asked_for_only() {
    let path = "/admin/v1/keys";
    let off = Fixture::new().await;
    assert_eq!(off.admin("GET", path, Value::Null).await.error().1, "unknown_url");

    let apart = administered(Some(([127, 0, 0, 1], 0).into())).await;
    assert_eq!(apart.admin("GET", path, Value::Null).await.error().1, "unknown_url");
    let own = admin::router(apart.context.admin.clone().unwrap());
    let ask = async |path| {
        own.clone().oneshot(request("GET", path, ADMIN_KEY, &Value::Null)).await.unwrap().status()
    };
    assert_eq!(ask(path).await, StatusCode::OK);
    assert_eq!(ask("/v1/models").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_it_cannot_use_is_400_and_names_the_field() {
    let fixture = administered(None).await;
    let mut wrong = Vec::new();
    for (body, param) in [
        (json!({}), None),
        (json!({ "name": "x", "color": 1 }), Some("color")),
        (json!({ "name": "x".repeat(257) }), Some("name")),
        (json!({ "name": "two\nlines" }), Some("name")),
        (json!({ "name": "x", "requests_per_minute": 0 }), Some("requests_per_minute")),
        (json!({ "name": "x", "tokens_per_minute": 5_000_000_000_i64 }), Some("tokens_per_minute")),
        (json!({ "name": "x", "monthly_tokens": -1 }), Some("monthly_tokens")),
        (json!({ "name": "x", "expires_at": 5 }), Some("expires_at")),
        (json!({ "name": "x", "models": [""] }), Some("models")),
        (json!({ "name": "x", "models": [3] }), Some("models[0]")),
    ] {
        let answer = fixture.admin("POST", "/admin/v1/keys", body.clone()).await;
        if answer.error() != (400, "invalid_value".into(), param.map(str::to_owned)) {
            wrong.push(format!("{body}: {}", answer.text()));
        }
    }
    for (query, param) in [
        ("from=yesterday", "from"),
        ("from=2026-11-22T10:00", "from"),
        ("to=2026-02-30", "to"),
        ("from=2026-02-02&to=2026-02-01", "from"),
        ("key_id=x", "key_id"),
        ("group_by=week", "group_by"),
        ("color=1", "color"),
    ] {
        let path = format!("/admin/v1/usage?{query}");
        let answer = fixture.admin("GET", &path, Value::Null).await;
        if answer.error() != (400, "invalid_value".into(), Some(param.to_owned())) {
            wrong.push(format!("{query}: {}", answer.text()));
        }
    }
    assert_eq!(wrong, [""; 0]);
    for method in ["GET", "PATCH", "DELETE"] {
        let body = if method == "PATCH" { json!({}) } else { Value::Null };
        let answer = fixture.admin(method, "/admin/v1/keys/77", body).await;
        assert_eq!(answer.error(), (404, "key_not_found".into(), None), "{method}");
    }
    assert_eq!(fixture.admin("GET", "/admin/v1/keys/x", Value::Null).await.error().0, 400);
}

#[tokio::test]
async fn usage_is_summed_up_as_asked() {
    let fixture = administered(None).await;
    let accounts = &fixture.context.accounts;
    let account = accounts.authenticate(KEY).await.unwrap();
    for (model, tokens) in [("flash", 10), ("pro", 20), ("flash", 30)] {
        let lease = accounts.admit(&account).unwrap();
        let mut charge = lease.begin(model, tokens, 5).unwrap();
        charge.generated(tokens, 1);
        charge.finish().await.unwrap();
    }
    let get = async |query: &str| {
        let answer = fixture.admin("GET", &format!("/admin/v1/usage?{query}"), Value::Null).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    };
    let by_model = get("group_by=model").await;
    let flash = json!({
        "model": "flash", "requests": 2, "prompt_tokens": 40, "cached_tokens": 10,
        "completion_tokens": 40, "reasoning_tokens": 2, "total_tokens": 80,
    });
    assert_eq!(by_model["data"][0], flash);
    assert_eq!(by_model["data"][1]["total_tokens"], 40);
    let by_key = get(&format!("group_by=key&key_id={}&model=pro", account.key_id())).await;
    assert_eq!(by_key["data"][0]["key_name"], "test");
    assert_eq!(by_key["data"][0]["requests"], 1);
    let by_day = get("").await;
    assert_eq!((&by_day["group_by"], &by_day["data"][0]["requests"]), (&"day".into(), &3.into()));
    assert_eq!(by_day["data"][0]["day"], by_day["to"]);
    assert_eq!(get("from=2000-01-01&to=2000-01-31").await["data"], json!([]));
}

#[tokio::test]
async fn every_change_is_in_the_log_and_no_secret() {
    let log = Log::default();
    let fixture = administered(None).await;
    let recording = log.record();
    let made = fixture.admin("POST", "/admin/v1/keys", json!({ "name": "app" })).await.json();
    let path = format!("/admin/v1/keys/{}", made["id"]);
    fixture.admin("PATCH", &path, json!({ "active": false, "monthly_tokens": null })).await;
    fixture.admin("DELETE", &path, Value::Null).await;
    fixture.admin("DELETE", "/admin/v1/keys/999", Value::Null).await;
    drop(recording);
    let text = log.text();
    let id = made["id"].as_i64().unwrap();
    let expected = [
        ("create_key", id, "outcome=\"ok\""),
        ("update_key", id, "fields=\"active,monthly_tokens\" outcome=\"ok\""),
        ("revoke_key", id, "outcome=\"ok\""),
        ("revoke_key", 999, "outcome=\"key_not_found\""),
    ];
    for (action, id, rest) in expected {
        let expect = format!("action=\"{action}\" key.id={id} {rest}");
        let line = text.lines().find(|line| line.contains(&expect));
        let line = line.unwrap_or_else(|| panic!("{expect} is not in\n{text}"));
        assert!(line.contains("by=\"admin key\"") && line.contains("request.id"), "{line}");
    }
    let key = made["key"].as_str().unwrap();
    assert!(!text.contains(key) && !text.contains(ADMIN_KEY), "{text}");
}

#[tokio::test]
async fn status_says_how_the_groups_are() {
    let fixture = administered(None).await;
    fixture.engine.set(|status| status.waiting = 3);
    let status = fixture.admin("GET", "/admin/v1/status", Value::Null).await.json();
    assert_eq!((&status["object"], &status["ready"]), (&"status".into(), &true.into()));
    let model = &status["models"][0];
    assert_eq!((&model["id"], &model["waiting"]), (&MODEL.into(), &3.into()));
    let phase = Phase::Unavailable { reason: "rank 1 left".to_owned() };
    fixture.engine.set(|status| status.phase = phase);
    let status = fixture.admin("GET", "/admin/v1/status", Value::Null).await.json();
    assert_eq!(status["ready"], false);
    assert_eq!(status["models"][0]["detail"], "unavailable: rank 1 left");
}
