use std::io::Write as _;

use serde::{Deserialize, Serialize};

use super::{Problems, kernel_cache_in, merge};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    model: Vec<String>,
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_fills_the_rest() {
    let file = file("http = \"1.2.3.4:1\"\nmodel = [\"a=b\"]\n");
    let typed = Typed { http: Some("5.6.7.8:2".into()), model: vec![] };
    let merged: Typed = merge(Some(file.path()), &typed).unwrap();
    assert_eq!(merged, Typed { http: Some("5.6.7.8:2".into()), model: vec!["a=b".into()] });
}

#[test]
fn an_unknown_name_in_the_file_is_named() {
    let file = file("htttp = \"1.2.3.4:1\"\n");
    let message = merge(Some(file.path()), &Typed::default()).unwrap_err().to_string();
    assert!(message.contains("htttp"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    let message =
        merge(Some("/nowhere/at/all.toml".as_ref()), &Typed::default()).unwrap_err().to_string();
    assert!(message.contains("/nowhere/at/all.toml"), "{message}");
}

#[test]
fn every_mistake_is_reported() {
    let mut problems = Problems::default();
    assert_eq!(problems.address("--http", "nonsense"), None);
    assert_eq!(problems.count("--workers", 0, 64), None);
    assert_eq!(problems.required::<u8>("--coordinator", None), None);
    let message = problems.finish().unwrap_err().to_string();
    for part in ["3 mistakes", "--http nonsense", "--workers 0", "--coordinator is required"] {
        assert!(message.contains(part), "{part:?} is missing in {message:?}");
    }
}

#[test]
fn compiled_kernels_go_to_the_users_cache() {
    let dir = |xdg: Option<&str>, home: Option<&str>| {
        kernel_cache_in(xdg.map(Into::into), home.map(Into::into)).display().to_string()
    };
    assert_eq!(dir(Some("/x"), Some("/h")), "/x/switchyard/kernels");
    // A relative path there is to be ignored, says the XDG specification.
    assert_eq!(dir(Some("x"), Some("/h")), "/h/.cache/switchyard/kernels");
    assert_eq!(dir(None, Some("/h")), "/h/.cache/switchyard/kernels");
    assert_eq!(dir(None, None), ".switchyard/kernels");
}
