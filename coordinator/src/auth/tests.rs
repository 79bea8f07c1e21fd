use std::str::FromStr as _;

use super::*;

fn url(dir: &tempfile::TempDir) -> String {
    crate::options::default_database_url(dir.path())
}

async fn store() -> (KeyStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (KeyStore::open(&url(&dir)).await.unwrap(), dir)
}

#[tokio::test]
async fn a_created_key_is_accepted_until_it_is_revoked() {
    let (keys, _dir) = store().await;
    let (record, key) = keys.create("laptop").await.unwrap();
    assert!(key.expose().starts_with("sk-sy-"));
    assert!(key.expose().starts_with(&record.prefix));
    let account = keys.check(key.expose()).await.unwrap().unwrap();
    assert_eq!(account, Account { key_id: record.id, name: "laptop".into() });

    let revoked = keys.revoke(record.id).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(keys.check(key.expose()).await.unwrap(), None);
    assert_eq!(keys.list().await.unwrap(), [revoked]);
}

#[tokio::test]
async fn unknown_and_malformed_keys_are_refused() {
    let (keys, _dir) = store().await;
    let (_, key) = keys.create("laptop").await.unwrap();
    let almost = &key.expose()[..key.expose().len() - 1];
    for bearer in ["", "sk-sy-", "sk-sy-0123", almost, "sk sy", "schlüssel-schlüssel"] {
        assert_eq!(keys.check(bearer).await.unwrap(), None, "{bearer}");
    }
}

#[tokio::test]
async fn the_plaintext_is_not_on_the_disk() {
    let (keys, dir) = store().await;
    let (_, key) = keys.create("laptop").await.unwrap();
    let secret = key.expose().as_bytes();
    let mut files = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        files += 1;
    }
    assert!(files > 0);
    assert!(!format!("{key:?}").contains(key.expose()));
}

#[tokio::test]
async fn a_second_process_sees_the_same_keys() {
    let (keys, dir) = store().await;
    let other = KeyStore::open(&url(&dir)).await.unwrap();
    let (record, key) = other.create("laptop").await.unwrap();
    assert!(keys.check(key.expose()).await.unwrap().is_some());
    other.revoke(record.id).await.unwrap();
    // The first store may answer from its cache, for a bounded time only.
    keys.cache().forget_key(record.id);
    assert_eq!(keys.check(key.expose()).await.unwrap(), None);
}

#[tokio::test]
async fn a_chosen_key_is_inserted_once_and_can_be_made_valid_again() {
    let (keys, _dir) = store().await;
    let first = keys.insert_plaintext("bootstrap", "my-own-key").await.unwrap();
    assert_eq!(first.prefix, "my-ow");
    keys.revoke(first.id).await.unwrap();
    let again = keys.insert_plaintext("bootstrap", "my-own-key").await.unwrap();
    assert_eq!(again, first);
    assert!(keys.check("my-own-key").await.unwrap().is_some());
    for (key, message) in [
        ("", "the key must have 1 to 256 characters"),
        ("with space in it", "the key must consist of visible ASCII characters"),
    ] {
        let error = keys.insert_plaintext("bootstrap", key).await.unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[tokio::test]
async fn revoking_an_unknown_key_says_so() {
    let (keys, _dir) = store().await;
    let error = keys.revoke(7).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no key with id 7; see `switchyard keys list`");
}

#[tokio::test]
async fn an_unusable_database_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let corrupt = dir.path().join("corrupt.db");
    std::fs::write(&corrupt, "this is no database, and long enough to be looked at: ".repeat(40))
        .unwrap();
    let good = url(&dir);
    KeyStore::open(&good).await.unwrap();
    let url = |path: &std::path::Path| format!("sqlite://{}", path.display());
    let missing_folder = url(&dir.path().join("no/such/folder/keys.db"));
    for (url, expect) in [
        (url(&corrupt), "file is not a database"),
        (missing_folder, "unable to open database file"),
        (format!("{good}?mode=ro"), "attempt to write a readonly database"),
        ("mysql://localhost".to_owned(), "use sqlite://PATH"),
    ] {
        let error = KeyStore::open(&url).await.expect_err(&url).to_string();
        assert!(error.contains(expect) && error.contains(&url), "{error}");
    }
}

#[tokio::test]
async fn a_full_disk_is_noticed_when_opening() {
    let dir = tempfile::tempdir().unwrap();
    let url = url(&dir);
    // SQLite answers a bound on pages as it answers a full disk.
    let options = SqliteConnectOptions::from_str(&url).unwrap().pragma("max_page_count", "3");
    let error = KeyStore::open_with(&url, options).await.unwrap_err().to_string();
    assert!(error.contains("database or disk is full") && error.contains(&url), "{error}");
}

#[test]
fn the_cache_forgets_what_is_old_and_what_is_too_much() {
    let account = |key_id| Account { key_id, name: String::new() };
    let hash = |n: u64| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_le_bytes());
        hash
    };
    let start = Instant::now();
    let mut cache = Cache::default();
    cache.put(hash(0), account(0), start);
    let almost = start + cache::FRESH - Duration::from_millis(1);
    assert_eq!(cache.get(&hash(0), almost), Some(account(0)));
    assert_eq!(cache.get(&hash(0), start + cache::FRESH), None);

    for n in 1..=2000 {
        cache.put(hash(n), account(1), start);
    }
    assert_eq!(cache.len(), 1024);
    assert_eq!(cache.get(&hash(976), start), None);
    assert_eq!(cache.get(&hash(977), start), Some(account(1)));
    cache.forget_key(1);
    assert_eq!(cache.len(), 0);
}
