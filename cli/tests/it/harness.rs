//! Starts the program, reads what it writes, speaks to its API, and looks for what it leaves behind.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// A debug build on a busy machine may take this long for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Lines of a process that wait to be looked at.
const LINES_MAX: usize = 4096;

/// A process whose lines, from both outputs, can be waited for.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Everything it has written so far.
    pub(crate) output: String,
}

/// A running `switchyard up`.
pub(crate) struct Up {
    /// The process.
    pub(crate) process: Process,
    /// Root URL of the HTTP API.
    pub(crate) url: String,
    /// Address of the gRPC API.
    pub(crate) grpc: String,
    /// The key it showed.
    pub(crate) key: String,
    http: reqwest::Client,
    data: TempDir,
}

/// The smaller of the models that ship with the repository.
pub(crate) fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo-flash").canonicalize().unwrap()
}

/// A copy of the demo model that a test may damage.
pub(crate) fn copy_of_demo_model() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo_model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// The program with these arguments, free of the caller's settings.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    let own =
        std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("SWITCHYARD_"));
    command.env_clear().envs(own).args(args);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Arguments of an `up` on free ports with its data in `data`.
pub(crate) fn up_args(data: &Path) -> Vec<String> {
    let data = data.to_str().unwrap();
    ["up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data", data]
        .map(str::to_owned)
        .to_vec()
}

/// Runs the program to its end; status and everything it wrote.
pub(crate) async fn run(args: &[&str]) -> (ExitStatus, String) {
    finish(&mut program(args)).await
}

/// Runs a command to its end; status and everything it wrote.
pub(crate) async fn finish(command: &mut Command) -> (ExitStatus, String) {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    (output.status, text)
}

/// Whether the process exists and is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waited).await.is_ok();
    assert!(in_time, "waited in vain: {what}");
}

// === impl Process ===

impl Process {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel(LINES_MAX);
        forward(child.stdout.take().unwrap(), sender.clone());
        forward(child.stderr.take().unwrap(), sender);
        Self { child, lines, output: String::new() }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Reads on until a line contains `part`; that line.
    pub(crate) async fn line_with(&mut self, part: &str) -> String {
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = self.lines.recv().await {
                self.output.push_str(&line);
                self.output.push('\n');
                if line.contains(part) {
                    return Some(line);
                }
            }
            None
        });
        match found.await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without saying {part:?}:\n{}", self.output),
            Err(_) => panic!("it does not say {part:?}:\n{}", self.output),
        }
    }

    /// Sends it a signal, such as `INT`.
    pub(crate) async fn signal(&self, name: &str) {
        signal(self.pid(), name).await;
    }

    /// Waits for its end; status and everything it wrote.
    pub(crate) async fn wait(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap();
        while let Some(line) = self.lines.recv().await {
            self.output.push_str(&line);
            self.output.push('\n');
        }
        (status.unwrap(), self.output)
    }

    /// Processes that it started and that still run.
    pub(crate) fn children(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap() {
            let listed = std::fs::read_to_string(task.unwrap().path().join("children"));
            let listed = listed.unwrap_or_default();
            found.extend(listed.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        found
    }
}

/// Sends a process a signal.
pub(crate) async fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().await;
    assert!(status.unwrap().success(), "cannot send {name} to {pid}");
}

fn forward(output: impl AsyncRead + Send + Unpin + 'static, lines: mpsc::Sender<String>) {
    let mut read = BufReader::new(output).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = read.next_line().await {
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
}

// === impl Up ===

impl Up {
    /// Starts a cluster with the smaller demo model on free ports and waits until it is ready.
    pub(crate) async fn start(more: &[&str]) -> Self {
        let model = demo_model();
        let args: Vec<_> =
            ["--model", model.to_str().unwrap()].into_iter().chain(more.iter().copied()).collect();
        Self::start_with(&args).await
    }

    /// Starts a cluster with these arguments only.
    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let args = up_args(data.path());
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut process = Process::start(&mut program(&args));
        process.line_with("Ctrl-C stops").await;
        let field = |name: &str| {
            let row = process.output.lines().find_map(|line| {
                line.trim_matches(['│', ' '])
                    .strip_prefix(name)
                    .map(|value| value.trim().to_owned())
            });
            row.unwrap_or_else(|| panic!("no {name} in:\n{}", process.output))
        };
        let url = field("HTTP ").trim_end_matches("/v1").to_owned();
        let (grpc, key) = (field("gRPC "), field("Key "));
        Self { url, grpc, key, http: http_client(), process, data }
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Sends a chat request; its status and body.
    pub(crate) async fn chat(&self, request: &Value) -> (u16, Value) {
        let url = format!("{}/v1/chat/completions", self.url);
        let response = self.http.post(url).bearer_auth(&self.key).json(request).send();
        let response = response.await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Starts a streamed chat.
    pub(crate) async fn stream(&self, request: &Value) -> reqwest::Response {
        let url = format!("{}/v1/chat/completions", self.url);
        let response = self.http.post(url).bearer_auth(&self.key).json(request).send();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        response
    }

    /// Asks one short question; the answer's text.
    pub(crate) async fn answer(&self) -> String {
        let (status, body) = self.chat(&question(8)).await;
        assert_eq!(status, 200, "{body}");
        body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// Status and text of a GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// Stops it as Ctrl-C does; checks that it ends well and leaves nothing running.
    pub(crate) async fn stop(self) -> String {
        let children = self.process.children();
        self.process.signal("INT").await;
        let (status, output) = self.process.wait().await;
        assert!(status.success(), "{status}: {output}");
        assert!(children.iter().all(|pid| !is_alive(*pid)), "a worker outlives `up`: {output}");
        output
    }
}

/// A client that speaks plain HTTP.
pub(crate) fn http_client() -> reqwest::Client {
    // Every test tries; the first one wins.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

/// What [`question`] asks.
pub(crate) const QUESTION: &str = "What is the capital of France?";

/// A short greedy question.
pub(crate) fn question(max_tokens: u32) -> Value {
    json!({
        "model": "demo-flash",
        "messages": [{"role": "user", "content": QUESTION}],
        "thinking": {"type": "disabled"},
        "temperature": 0,
        "max_tokens": max_tokens,
    })
}
