//! Keys: made, listed without being shown, revoked.

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
    keys(&data, &["revoke", id]).await;
    crate::harness::eventually("the key is refused", async || up.chat(&question(1)).await.0 == 401)
        .await;
    up.key = dev_key;
    up.answer().await;

    let (status, output) = run(&["keys", "--data", &data, "revoke", "999"]).await;
    assert!(!status.success() && output.contains("999"), "{output}");
    up.stop().await;
}
