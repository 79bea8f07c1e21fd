//! The terminal chat, with its input from a pipe.

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use crate::harness::{PATIENCE, Up, program, run};

/// Runs `chat` with these lines as input; whether it succeeded, its output and its errors.
async fn chat(args: &[&str], input: &str) -> (bool, String, String) {
    let mut command = program(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap();
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn it_answers_finds_its_key_and_says_how_fast() {
    let up = Up::start(&["--workers", "1"]).await;
    let data = up.data().to_str().unwrap();
    let args = ["chat", "--url", &up.url, "--data", data, "--think", "off"];
    let (success, output, errors) =
        chat(&args, "hello\n/help\n/nonsense\n\n/clear\nhello\n/exit\nnever sent\n").await;
    assert!(success, "{errors}");
    let lines: Vec<_> = output.lines().collect();
    assert!(lines.len() >= 2 && !lines[0].is_empty(), "two answers: {output}");
    assert_eq!(errors.matches("first after").count(), 2, "{errors}");
    assert!(errors.contains("tok/s"), "{errors}");
    assert!(errors.contains("there is no /nonsense"), "{errors}");

    let (success, _, errors) = chat(&["chat", "--url", &up.url, "--api-key", "sk-wrong"], "").await;
    assert!(!success && errors.contains("--api-key"), "{errors}");

    let args = ["chat", "--url", &up.url, "--data", data, "--model", "no-such-model"];
    let (success, _, errors) = chat(&args, "").await;
    assert!(
        !success && errors.contains("no-such-model") && errors.contains("demo-flash"),
        "{errors}"
    );
    up.stop().await;
}

#[tokio::test]
async fn without_a_server_it_says_how_to_start_one() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let (status, output) = run(&["chat", "--url", &url, "--api-key", "sk-any"]).await;
    assert!(!status.success());
    assert!(output.contains(&url) && output.contains("switchyard up"), "{output}");
}
