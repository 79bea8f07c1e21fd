use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use jiff::civil::date;
use tokio::time::Instant;

use super::cache::{self, Cache};
use super::database::Database;
use super::testing::{Fixture, NOW, fixtures};
use super::*;

fn named(name: &str) -> Terms {
    Terms { name: name.to_owned(), ..Terms::default() }
}

fn all_terms() -> Terms {
    Terms {
        name: "laptop".into(),
        expires_at: Some(NOW + 60),
        models: vec!["flash".into(), "a \"quoted\", one".into()],
        limits: KeyLimits {
            requests_per_minute: NonZeroU32::new(60),
            tokens_per_minute: NonZeroU32::new(u32::MAX),
            concurrent_requests: NonZeroU32::new(2),
            monthly_tokens: NonZeroU64::new(1 << 62),
        },
    }
}

/// Why a key is refused.
async fn refusal(keys: &KeyStore, key: &str) -> Denied {
    match keys.check(key).await {
        Err(AdmitError::Denied(denied)) => denied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_created_key_is_accepted_until_it_is_revoked() {
    for Fixture { keys, .. } in &fixtures().await {
        let (record, key) = keys.create(&all_terms()).await.unwrap();
        assert_eq!(record.terms, all_terms());
        assert_eq!(record.created_at, NOW);
        assert!(key.expose().starts_with("sk-sy-"));
        assert!(key.expose().starts_with(&record.prefix));
        let account = keys.check(key.expose()).await.unwrap();
        assert_eq!((account.key_id(), account.name()), (record.id, "laptop"));
        assert_eq!(account.limits(), &record.terms.limits);
        assert_eq!(keys.get(record.id).await.unwrap(), record);

        let revoked = keys.revoke(record.id).await.unwrap();
        assert_eq!(revoked.revoked_at, Some(NOW));
        assert_eq!(refusal(keys, key.expose()).await, Denied::Unknown);
        assert_eq!(keys.list().await.unwrap(), [revoked]);
    }
}

#[tokio::test]
async fn unknown_and_malformed_keys_are_refused() {
    for Fixture { keys, .. } in &fixtures().await {
        let (_, key) = keys.create(&named("laptop")).await.unwrap();
        let almost = &key.expose()[..key.expose().len() - 1];
        for bearer in ["", "sk-sy-", "sk-sy-0123", almost, "sk sy", "schlüssel-schlüssel"] {
            assert_eq!(refusal(keys, bearer).await, Denied::Unknown, "{bearer}");
        }
    }
}

#[tokio::test]
async fn a_key_expires_and_can_be_switched_off_and_on() {
    for fixture in &fixtures().await {
        let keys = &fixture.keys;
        fixture.set_time(NOW);
        let (record, key) = keys.create(&all_terms()).await.unwrap();
        let on = |active| KeyChange { active: Some(active), ..KeyChange::default() };
        keys.update(record.id, &on(false)).await.unwrap();
        assert_eq!(refusal(keys, key.expose()).await, Denied::Inactive);
        assert_eq!(keys.update(record.id, &on(true)).await.unwrap(), record);
        keys.check(key.expose()).await.unwrap();

        // The check is cached, but not its result.
        fixture.set_time(NOW + 59);
        keys.check(key.expose()).await.unwrap();
        fixture.set_time(NOW + 60);
        assert_eq!(refusal(keys, key.expose()).await, Denied::Expired);
        let for_ever = KeyChange { expires_at: Change::Clear, ..KeyChange::default() };
        keys.update(record.id, &for_ever).await.unwrap();
        keys.check(key.expose()).await.unwrap();
    }
}

#[tokio::test]
async fn a_change_touches_what_it_names_only() {
    for Fixture { keys, .. } in &fixtures().await {
        let (record, _) = keys.create(&all_terms()).await.unwrap();
        assert_eq!(keys.update(record.id, &KeyChange::default()).await.unwrap(), record);

        let change = KeyChange {
            name: Some("desk".into()),
            models: Some(Vec::new()),
            expires_at: Change::Set(NOW + 5),
            requests_per_minute: Change::Clear,
            tokens_per_minute: Change::Set(NonZeroU32::MIN),
            ..KeyChange::default()
        };
        let mut expect = record.clone();
        expect.terms.name = "desk".into();
        expect.terms.models.clear();
        expect.terms.expires_at = Some(NOW + 5);
        expect.terms.limits.requests_per_minute = None;
        expect.terms.limits.tokens_per_minute = Some(NonZeroU32::MIN);
        assert_eq!(keys.update(record.id, &change).await.unwrap(), expect);

        let change = KeyChange {
            concurrent_requests: Change::Clear,
            monthly_tokens: Change::Set(NonZeroU64::MIN),
            ..KeyChange::default()
        };
        expect.terms.limits.concurrent_requests = None;
        expect.terms.limits.monthly_tokens = Some(NonZeroU64::MIN);
        assert_eq!(keys.update(record.id, &change).await.unwrap(), expect);
    }
}

#[tokio::test]
async fn the_plaintext_is_not_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyStore::open(&crate::options::default_database_url(dir.path())).await.unwrap();
    let (_, key) = keys.create(&named("laptop")).await.unwrap();
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
    for fixture in &fixtures().await {
        let keys = &fixture.keys;
        let other = fixture.reopen().await;
        let (record, key) = other.create(&named("laptop")).await.unwrap();
        keys.check(key.expose()).await.unwrap();
        other.revoke(record.id).await.unwrap();
        // The first store may answer from its cache, for a bounded time only.
        keys.cache().forget_key(record.id);
        assert_eq!(refusal(keys, key.expose()).await, Denied::Unknown);
    }
}

#[tokio::test]
async fn a_chosen_key_is_inserted_once_and_can_be_made_valid_again() {
    for Fixture { keys, .. } in &fixtures().await {
        let first = keys.insert_plaintext("bootstrap", "my-own-key").await.unwrap();
        assert_eq!(first.prefix, "my-ow");
        keys.revoke(first.id).await.unwrap();
        let off = KeyChange { active: Some(false), ..KeyChange::default() };
        keys.update(first.id, &off).await.unwrap();
        let again = keys.insert_plaintext("bootstrap", "my-own-key").await.unwrap();
        assert_eq!(again, first);
        keys.check("my-own-key").await.unwrap();
        for (key, message) in [
            ("", "the key must have 1 to 256 characters"),
            ("with space in it", "the key must consist of visible ASCII characters"),
        ] {
            let error = keys.insert_plaintext("bootstrap", key).await.unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}

#[tokio::test]
async fn an_unknown_number_is_said_to_be_unknown() {
    for Fixture { keys, .. } in &fixtures().await {
        let id = KeyId::new(7);
        for error in [
            keys.revoke(id).await.unwrap_err(),
            keys.get(id).await.unwrap_err(),
            keys.update(id, &KeyChange::default()).await.unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "there is no key with id 7; see `switchyard keys list`");
        }
    }
}

#[test]
fn a_state_that_cannot_be_undone_comes_first() {
    let record = |revoked_at, expires_at, disabled_at| KeyRecord {
        id: KeyId::new(1),
        prefix: String::new(),
        created_at: 0,
        revoked_at,
        disabled_at,
        terms: Terms { expires_at, ..Terms::default() },
    };
    for (revoked_at, expires_at, disabled_at, expect) in [
        (Some(1), Some(1), Some(1), KeyState::Revoked),
        (None, Some(NOW), Some(1), KeyState::Expired),
        (None, Some(NOW + 1), Some(1), KeyState::Disabled),
        (None, Some(NOW + 1), None, KeyState::Active),
        (None, None, None, KeyState::Active),
    ] {
        assert_eq!(record(revoked_at, expires_at, disabled_at).state(NOW), expect);
    }
}

#[tokio::test]
async fn keys_of_an_older_version_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let url = crate::options::default_database_url(dir.path());
    // The tables as the first version made them, with a key that it made.
    let old = sqlx::migrate!("./migrations/sqlite");
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&format!("{url}?mode=rwc")).await.unwrap();
    old.run_to(1, &pool).await.unwrap();
    let hash = PlaintextKey::parse("sk-old").unwrap().hash().to_vec();
    let insert =
        "INSERT INTO api_keys (name, hash, prefix, created_at) VALUES ('old', $1, 'sk', 5)";
    sqlx::query(insert).bind(hash).execute(&pool).await.unwrap();
    pool.close().await;

    let keys = KeyStore::open(&url).await.unwrap();
    assert_eq!(keys.check("sk-old").await.unwrap().name(), "old");
    assert_eq!(keys.list().await.unwrap()[0].terms, named("old"));
}

#[tokio::test]
async fn an_unusable_database_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let corrupt = dir.path().join("corrupt.db");
    std::fs::write(&corrupt, "this is no database, and long enough to be looked at: ".repeat(40))
        .unwrap();
    let good = crate::options::default_database_url(dir.path());
    KeyStore::open(&good).await.unwrap();
    let url = |path: &std::path::Path| format!("sqlite://{}", path.display());
    let missing_folder = url(&dir.path().join("no/such/folder/keys.db"));
    for (url, shown, expect) in [
        (url(&corrupt), None, "file is not a database"),
        (missing_folder, None, "unable to open database file"),
        (format!("{good}?mode=ro"), None, "attempt to write a readonly database"),
        ("mysql://localhost".to_owned(), None, "use sqlite://PATH or postgres://"),
        ("keys.db".to_owned(), None, "use sqlite://PATH or postgres://"),
        (
            "postgres://me:secret@127.0.0.1:1/keys?password=secret".to_owned(),
            Some("postgres://me@127.0.0.1:1/keys"),
            "refused",
        ),
    ] {
        let error = KeyStore::open(&url).await.expect_err(&url).to_string();
        let shown = shown.unwrap_or(&url);
        assert!(error.contains(expect) && error.contains(shown), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_full_disk_is_noticed_when_opening() {
    let dir = tempfile::tempdir().unwrap();
    let url = crate::options::default_database_url(dir.path());
    // SQLite answers a bound on pages as it answers a full disk.
    let error = Database::open_with(&url, "PRAGMA max_page_count = 3").await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("database or disk is full") && error.contains(&url), "{error}");
}

#[tokio::test]
async fn odd_folder_names_are_only_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["two words", "[::1", "ümlaut", "a&b=c", "mode=ro", "50%41?#"] {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        KeyStore::open(&crate::options::default_database_url(&folder)).await.expect(name);
        assert!(folder.join("switchyard.db").is_file(), "{name}");
    }
}

#[test]
fn the_cache_forgets_what_is_old_and_what_is_too_much() {
    let account = |key_id| {
        let record = KeyRecord {
            id: KeyId::new(key_id),
            prefix: String::new(),
            created_at: 0,
            revoked_at: None,
            disabled_at: None,
            terms: Terms::default(),
        };
        Account::new(record, 0)
    };
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
    cache.forget_key(KeyId::new(1));
    assert_eq!(cache.len(), 0);
}

#[test]
fn days_and_months_are_those_of_utc() {
    for (at, day, left) in [
        ("2026-11-22T15:04:00Z", date(2026, 11, 22), 8 * 86_400 + 8 * 3600 + 56 * 60),
        ("2026-11-30T23:59:59Z", date(2026, 11, 30), 1),
        ("2026-12-01T00:30:00+01:00", date(2026, 11, 30), 1800),
        ("2028-02-29T00:00:00Z", date(2028, 2, 29), 86_400),
    ] {
        let clock = clock::Clock::new(move || at.parse().unwrap());
        assert_eq!((clock.today(), clock.seconds_left_of_month()), (day, left), "{at}");
    }
}
