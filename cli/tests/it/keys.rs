//! Keys: made, listed without being shown, limited, switched off, revoked.

use crate::harness::{Up, question, run};

async fn keys(data: &str, args: &[&str]) -> String {
    let args: Vec<_> = ["keys", "--data", data].iter().chain(args).copied().collect();
    let (status, output) = run(&args).await;
    assert!(status.success(), "{output}");
    output
}

#[tokio::test]
async fn a_key_works_until_it_is_revoked() {
    let mut up = Up::start(&["--workers", "1"]).await;
    let data = up.data().to_str().unwrap().to_owned();
    let created = keys(&data, &["create", "--name", "my app"]).await;
    let key = created.lines().find(|line| line.starts_with("sk-")).unwrap().to_owned();
    let dev_key = std::mem::replace(&mut up.key, key.clone());
    up.answer().await;

    let list = keys(&data, &["list"]).await;
    assert!(list.contains("my app") && !list.contains(&key) && !list.contains(&dev_key), "{list}");
    let row = list.lines().find(|line| line.contains("my app")).unwrap();
    let id = row.split_whitespace().next().unwrap();
    // A running coordinator notices each change within a second.
    let answered_with = async |up: &Up, status: u16| {
        let what = format!("the key is answered with {status}");
        crate::harness::eventually(&what, async || up.chat(&question(1)).await.0 == status).await;
    };
    keys(&data, &["disable", id]).await;
    answered_with(&up, 403).await;
    keys(&data, &["enable", id]).await;
    answered_with(&up, 200).await;
    keys(&data, &["update", id, "--requests-per-minute", "1"]).await;
    answered_with(&up, 429).await;
    let list = keys(&data, &["list"]).await;
    assert!(list.contains("REQ/MIN") && !list.contains("TOK/MIN"), "{list}");
    let json: serde_json::Value =
        serde_json::from_str(&keys(&data, &["list", "--json"]).await).unwrap();
    assert!(json.as_array().unwrap().iter().any(|key| key["requests_per_minute"] == 1), "{json}");
    keys(&data, &["usage", "--by", "key"]).await;
    keys(&data, &["revoke", id]).await;
    crate::harness::eventually("the key is refused", async || up.chat(&question(1)).await.0 == 401)
        .await;
    up.key = dev_key;
    up.answer().await;

    let (status, output) = run(&["keys", "--data", &data, "revoke", "999"]).await;
    assert!(!status.success() && output.contains("999"), "{output}");
    up.stop().await;
}
