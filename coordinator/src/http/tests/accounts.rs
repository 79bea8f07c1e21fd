//! What a key's limits do to its holder's requests.

use std::num::{NonZeroU32, NonZeroU64};

use super::super::authenticate::reset_text;
use super::*;
use crate::auth::{Account, Change, KeyChange, Lease};

/// Changes what the test's key may do.
async fn change(fixture: &Fixture, change: KeyChange) {
    let keys = fixture.context.accounts.keys();
    let id = keys.check(KEY).await.unwrap().key_id();
    keys.update(id, &change).await.unwrap();
}

fn small(limit: u32) -> Change<NonZeroU32> {
    Change::Set(NonZeroU32::new(limit).unwrap())
}

/// A chat that gets its answer.
async fn answered(fixture: &Fixture) -> Answer {
    fixture.engine.answer(&testing::ids("ok"));
    let answer = fixture.chat(&json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer
}

#[tokio::test]
async fn requests_per_minute_are_counted_told_and_refused() {
    let fixture = Fixture::new().await;
    assert_eq!(answered(&fixture).await.header("x-ratelimit-limit-requests"), "");
    change(&fixture, KeyChange { requests_per_minute: small(2), ..KeyChange::default() }).await;
    let first = answered(&fixture).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    let reset = first.header("x-ratelimit-reset-requests");
    assert!(reset.starts_with("29.") || reset == "30s", "{reset}");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "");
    answered(&fixture).await;

    let refused = fixture.chat(&json!({})).await;
    assert_eq!(refused.error(), (429, "rate_limit_exceeded".into(), None));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(refused.json()["error"]["message"], "the API key may send 2 requests per minute");
    let retry_after: u64 = refused.header("retry-after").parse().unwrap();
    assert!((29..=30).contains(&retry_after), "{retry_after}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    // What computes nothing is free, and tells the limits, too.
    let list = fixture.get("/v1/models").await;
    assert_eq!(list.status, StatusCode::OK);
    assert_eq!(list.header("x-ratelimit-remaining-requests"), "0");
    let metrics = fixture.get("/metrics").await.text();
    assert!(metrics.contains(r#"switchyard_rate_limited_requests_total{reason="requests"}"#));
}

#[tokio::test]
async fn a_request_counts_as_running_until_its_answer_is_over_or_dropped() {
    let fixture = Fixture::new().await;
    change(&fixture, KeyChange { concurrent_requests: small(1), ..KeyChange::default() }).await;
    let stream = || chat_request(&json!({ "stream": true }));
    let events = fixture.engine.manual();
    let running = fixture.begin(stream()).await;
    assert_eq!(running.status(), StatusCode::OK);
    let refused = fixture.chat(&json!({})).await;
    assert_eq!(refused.error().0, 429);
    assert_eq!(refused.header("retry-after"), "1");
    // The client goes away.
    drop(running);
    drop(events);
    answered(&fixture).await;

    fixture.engine.answer(&testing::ids("ok"));
    let streamed = fixture.begin(stream()).await;
    let (_, mut body) = streamed.into_parts();
    while let Some(frame) = std::future::poll_fn(|context| {
        http_body::Body::poll_frame(std::pin::Pin::new(&mut body), context)
    })
    .await
    {
        frame.unwrap();
    }
    // The last byte is out, although the body is still there.
    answered(&fixture).await;
    drop(body);
}

#[tokio::test]
async fn handlers_find_the_account_and_the_lease() {
    let fixture = Fixture::new().await;
    change(&fixture, KeyChange { tokens_per_minute: small(100), ..KeyChange::default() }).await;
    let accounts = fixture.context.accounts.clone();
    let handler = async |request: axum::extract::Request| {
        let account: &Account = request.extensions().get().unwrap();
        let lease: &Lease = request.extensions().get().unwrap();
        assert_eq!(lease.account(), account);
        let charge = lease.begin(MODEL, 70, 0).map_err(Error::from)?;
        charge.finish().await.unwrap();
        Ok::<_, Error>("served")
    };
    let layer = from_fn_with_state(accounts, authenticate::authenticate);
    let app = Router::new().route("/v1/chat/completions", axum::routing::post(handler));
    let app = app.route_layer(layer);
    let ask = async || app.clone().oneshot(chat_request(&json!({}))).await.unwrap();
    let header = |response: &Response, name: &str| {
        response.headers()[name].to_str().unwrap().parse::<u64>().unwrap()
    };
    let served = ask().await;
    assert_eq!(served.status(), StatusCode::OK);
    assert_eq!(header(&served, "x-ratelimit-limit-tokens"), 100);
    assert_eq!(header(&served, "x-ratelimit-remaining-tokens"), 30);
    let refused = ask().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!((23..=24).contains(&header(&refused, "retry-after")));
}

#[tokio::test]
async fn what_a_key_may_not_do_is_401_403_or_429() {
    let fixture = Fixture::new().await;
    change(&fixture, KeyChange { active: Some(false), ..KeyChange::default() }).await;
    let inactive = fixture.chat(&json!({})).await;
    assert_eq!(inactive.error(), (403, "inactive_api_key".into(), None));
    assert_eq!(inactive.json()["error"]["type"], "permission_error");
    assert!(inactive.text().contains("please ensure your API key is active"));
    assert_eq!(fixture.get("/v1/models").await.error().0, 403);

    let keys = fixture.context.accounts.keys();
    let terms = crate::auth::Terms { expires_at: Some(1), ..Default::default() };
    let (_, expired) = keys.create(&terms).await.unwrap();
    let request = Request::get("/v1/models");
    let request = request.header("authorization", format!("Bearer {}", expired.expose()));
    let expired = fixture.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(expired.error(), (401, "invalid_api_key".into(), None));
    assert!(expired.text().contains("expired"));

    let denied = crate::auth::Denied::Model { model: "a".into(), allowed: vec!["b".into()] };
    let answer = Error::from(denied).into_response();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_used_up_month_is_insufficient_quota() {
    let fixture = Fixture::new().await;
    let monthly_tokens = Change::Set(NonZeroU64::new(100).unwrap());
    change(&fixture, KeyChange { monthly_tokens, ..KeyChange::default() }).await;
    let account = fixture.context.accounts.authenticate(KEY).await.unwrap();
    let lease = fixture.context.accounts.admit(&account).unwrap();
    lease.begin(MODEL, 100, 0).unwrap().finish().await.unwrap();
    change(&fixture, KeyChange::default()).await;

    let refused = fixture.chat(&json!({})).await;
    assert_eq!(refused.error(), (429, "insufficient_quota".into(), None));
    assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), "false");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(fixture.get("/v1/models").await.status, StatusCode::OK);
}

#[test]
fn resets_are_written_as_openai_writes_them() {
    for (nanos, expect) in [
        (0, "0s"),
        (1, "1ms"),
        (20_000_000, "20ms"),
        (999_000_001, "1s"),
        (1_500_000_000, "1.5s"),
        (59_999_000_000, "59.999s"),
        (360_000_000_000, "6m0s"),
        (7_261_250_000_000, "121m1.25s"),
    ] {
        assert_eq!(reset_text(Duration::from_nanos(nanos)), expect);
    }
}
