use axum::body::Body;
use axum::http::{HeaderMap, Request};
use tower::ServiceExt as _;

use super::*;
use crate::http;
use crate::testing::Fixture;

async fn get(fixture: &Fixture, path: &str) -> (u16, HeaderMap, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = http::router(fixture.context.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// The texts between `before` and `"`.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

#[tokio::test]
async fn the_page_needs_no_key_and_trusts_nobody() {
    let fixture = Fixture::new().await;
    let (status, headers, page) = get(&fixture, "/").await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, HTML));
    assert_eq!(headers["content-security-policy"], POLICY);
    assert!(POLICY.starts_with("default-src 'self';") && !POLICY.contains("unsafe"));
    // What the policy would block, and what would come from elsewhere.
    for banned in ["<script>", "<style", " style=", " onclick=", "http://", "https://", "data:"] {
        assert!(!page.contains(banned), "{banned}");
    }
}

#[tokio::test]
async fn everything_that_the_page_loads_is_there_and_nothing_else() {
    let fixture = Fixture::new().await;
    let mut loaded = quoted(INDEX.content, "=\"playground/");
    loaded.extend(FILES.iter().flat_map(|file| quoted(file.content, "from \"./")));
    loaded.sort_unstable();
    loaded.dedup();
    for name in &loaded {
        let (status, headers, body) = get(&fixture, &format!("/playground/{name}")).await;
        assert_eq!((status, body.is_empty()), (200, false), "{name}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
    let mut served: Vec<_> = FILES.iter().map(|file| file.name).collect();
    served.sort_unstable();
    assert_eq!(served, loaded);
    for path in ["/playground/secret.js", "/playground/", "/playground/..%2Findex.html"] {
        assert_eq!(get(&fixture, path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn it_can_be_left_out() {
    let mut fixture = Fixture::new().await;
    fixture.context.playground = false;
    for path in ["/", "/playground/app.js"] {
        let (status, _, body) = get(&fixture, path).await;
        assert_eq!((status, body.contains("unknown_url")), (404, true), "{path}");
    }
}
