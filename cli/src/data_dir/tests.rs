use std::os::unix::fs::PermissionsExt as _;

use super::DataDir;

#[test]
fn the_development_key_is_made_once_and_is_private() {
    let root = tempfile::tempdir().unwrap();
    let data = DataDir::new(Some(&root.path().join("a/b")));
    assert_eq!(data.dev_key(), None);
    data.create().unwrap();
    let key = data.dev_key_or_create().unwrap();
    assert!(key.starts_with("sk-dev-") && key.len() == 55, "{key}");
    assert_eq!(data.dev_key_or_create().unwrap(), key);
    let mode = std::fs::metadata(data.path().join("dev-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 1, "no part file stays");
    assert_eq!(data.admin_key(), None);
    let admin_key = data.admin_key_or_create().unwrap();
    assert_ne!(admin_key.trim_start_matches("admin-"), key.trim_start_matches("sk-dev-"));
    assert_eq!((data.admin_key(), data.dev_key()), (Some(admin_key), Some(key)));
    let mode = std::fs::metadata(data.path().join("admin-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let data = DataDir::new(Some(&file.path().join("data")));
    let message = format!("{:#}", data.create().unwrap_err());
    assert!(message.contains(&file.path().display().to_string()), "{message}");
}
