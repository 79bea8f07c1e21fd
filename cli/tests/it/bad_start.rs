//! What must end with one clear message, a status other than 0, and nothing running.

use std::net::TcpListener;
use std::path::Path;

use crate::harness::{copy_of_demo_model, demo_model, finish, program, run, up_args};

/// Runs `up` with a model and expects it to fail with a message that has all these parts.
async fn expect_refusal(model: &Path, parts: &[&str]) {
    let data = tempfile::tempdir().unwrap();
    let mut args = up_args(data.path());
    args.extend(["--model".to_owned(), format!("demo={}", model.display())]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (status, output) = run(&args).await;
    assert!(!status.success(), "{output}");
    for part in parts {
        assert!(output.contains(part), "{part:?} is missing in:\n{output}");
    }
    let errors = output.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "one message, not several:\n{output}");
    assert!(!output.contains("is ready"), "{output}");
}

/// Shortens a file to a fraction of its size.
fn truncate(path: &Path, numerator: u64, denominator: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length * numerator / denominator).unwrap();
}

/// Some safetensors file of a model, and its name.
fn a_shard(model: &Path) -> (std::path::PathBuf, String) {
    let mut names: Vec<_> = std::fs::read_dir(model)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    names.sort();
    let name = names.pop().unwrap();
    (model.join(&name), name)
}

#[tokio::test]
async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--http", "--grpc"] {
        let data = tempfile::tempdir().unwrap();
        let other = if flag == "--http" { "--grpc" } else { "--http" };
        let data = data.path().to_str().unwrap();
        let args = ["up", flag, &address, other, "127.0.0.1:0", "--data", data];
        let (status, output) = run(&args).await;
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains(&address) && output.contains(flag), "{output}");
        assert_eq!(output.lines().count(), 1, "one message: {output}");
    }
}

#[tokio::test]
async fn a_truncated_checkpoint() {
    let model = copy_of_demo_model();
    let (path, name) = a_shard(model.path());
    truncate(&path, 2, 3);
    expect_refusal(model.path(), &[&name]).await;
}

#[tokio::test]
async fn a_checkpoint_cut_within_its_header() {
    let model = copy_of_demo_model();
    let (path, name) = a_shard(model.path());
    truncate(&path, 1, 1000);
    expect_refusal(model.path(), &[&name]).await;
}

#[tokio::test]
async fn a_missing_shard() {
    let model = copy_of_demo_model();
    let (path, name) = a_shard(model.path());
    std::fs::remove_file(path).unwrap();
    expect_refusal(model.path(), &[&name]).await;
}

#[tokio::test]
async fn a_configuration_with_an_impossible_value() {
    let model = copy_of_demo_model();
    let path = model.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_experts_per_tok"] = serde_json::json!(1_000_000);
    std::fs::write(&path, config.to_string()).unwrap();
    expect_refusal(model.path(), &["config.json", "num_experts_per_tok"]).await;
}

#[tokio::test]
async fn a_tokenizer_that_is_none() {
    let model = copy_of_demo_model();
    std::fs::write(model.path().join("tokenizer.json"), "{}").unwrap();
    expect_refusal(model.path(), &["tokenizer.json"]).await;
}

#[tokio::test]
async fn a_folder_without_a_model() {
    let empty = tempfile::tempdir().unwrap();
    expect_refusal(empty.path(), &["config.json"]).await;
}

#[tokio::test]
async fn a_folder_that_is_not_there() {
    let (status, output) = run(&["up", "--model", "/nowhere/at/all"]).await;
    assert_eq!(status.code(), Some(64), "{output}");
    assert!(output.contains("/nowhere/at/all"), "{output}");
}

#[tokio::test]
async fn every_mistake_on_the_command_line_is_reported() {
    let args = ["up", "--http", "nonsense", "--workers", "0", "--model", "/nowhere/at/all"];
    let (status, output) = run(&args).await;
    assert_eq!(status.code(), Some(64), "{output}");
    for part in ["--http nonsense", "--workers 0", "/nowhere/at/all"] {
        assert!(output.contains(part), "{part:?} is missing in:\n{output}");
    }
}

#[tokio::test]
async fn an_admin_api_that_would_be_open_or_ambiguous() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "too short\n").unwrap();
    let file = file.path().to_str().unwrap();
    let model = demo_model();
    let cases: [(&[&str], &str); 4] = [
        (&["--admin-listen", "127.0.0.1:0"], "--admin-listen needs --admin-key"),
        (&["--admin-key", "guess-me"], "at least 16 visible ASCII characters"),
        (&["--admin-key-file", file], "at least 16 visible ASCII characters"),
        (&["--admin-key", "long-enough-for-a-key", "--admin-key-file", file], "not both"),
    ];
    for (flags, expect) in cases {
        let args = ["coordinator", "--http", "nonsense", "--model", model.to_str().unwrap()];
        let args: Vec<_> = args.iter().chain(flags).copied().collect();
        let (status, output) = run(&args).await;
        assert_eq!(status.code(), Some(64), "{output}");
        assert!(output.contains(expect) && output.contains("--http nonsense"), "{output}");
        assert!(!output.contains("guess-me"), "{output}");
    }
}

#[tokio::test]
async fn tls_that_would_be_half_there() {
    let model = demo_model();
    let model = model.to_str().unwrap();
    let coordinator = ["coordinator", "--model", model];
    let worker = ["worker", "--world-size", "2", "--model", model];
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&coordinator, &["--tls-cert", "a.crt"], "belong together; not given: --tls-key"),
        (
            &coordinator,
            &["--cluster-tls-key", "a.key"],
            "not given: --cluster-tls-cert, --cluster-tls-ca",
        ),
        (
            &worker,
            &["--coordinator", "http://a:1", "--cluster-tls-ca", "ca.crt"],
            "not given: --cluster-tls-cert, --cluster-tls-key",
        ),
        (&worker, &["--coordinator", "https://a:1"], "https needs --cluster-tls-cert"),
    ];
    for (command, flags, expect) in cases {
        let args: Vec<_> = command.iter().chain(flags).copied().collect();
        let (status, output) = run(&args).await;
        assert_eq!(status.code(), Some(64), "{output}");
        assert!(output.contains(expect), "{output}");
    }
    let flags = ["--tls-cert", "/nowhere.crt", "--tls-key", "/nowhere.key"];
    let data = tempfile::tempdir().unwrap();
    let data = ["--data", data.path().to_str().unwrap()];
    let free = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"];
    let args: Vec<_> =
        coordinator.iter().chain(&flags).chain(&data).chain(&free).copied().collect();
    let (status, output) = run(&args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("/nowhere.crt"), "{output}");
}

#[tokio::test]
async fn a_mistake_in_a_configuration_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "worldsize = 2\n").unwrap();
    let path = file.path().to_str().unwrap();
    for command in ["coordinator", "worker"] {
        let (status, output) = run(&[command, "--config", path]).await;
        assert_eq!(status.code(), Some(64), "{output}");
        assert!(output.contains("worldsize"), "{output}");
    }
}

/// A disk on which nothing can be written: a limit of 0 bytes per file, whose signal is ignored.
#[tokio::test]
async fn a_full_disk() {
    let model = demo_model();
    for key in [&[][..], &["--api-key", "sk-chosen-by-me"]] {
        let data = tempfile::tempdir().unwrap();
        let mut args = up_args(data.path());
        args.extend(["--model".to_owned(), model.display().to_string()]);
        args.extend(key.iter().map(|word| (*word).to_owned()));
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
        shell.arg(program(&[]).as_std().get_program()).args(&args);
        let (status, output) = finish(&mut shell).await;
        assert_eq!(status.code(), Some(1), "{output}");
        assert!(output.contains(data.path().to_str().unwrap()), "{output}");
        assert_eq!(output.lines().count(), 1, "one message: {output}");
    }
}
