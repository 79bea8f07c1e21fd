//! Real processes with certificates, and crowds of connections.

use std::cell::Cell;
use std::path::Path;

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use switchyard_tls::testing::{Authority, Validity};
use switchyard_tls::{Files, Role};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Process, Up, demo_model, eventually, program, question, run};

/// The key that these coordinators accept from the start.
const KEY: &str = "sk-sy-of-the-tls-tests";

/// Names of the HTTP API's certificate.
const HTTP_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A coordinator with TLS everywhere, and where it listens.
struct Coordinator {
    process: Process,
    http: String,
    grpc: String,
    _data: tempfile::TempDir,
}

fn cluster_flags(files: &Files) -> Vec<String> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        "--cluster-tls-cert".to_owned(),
        path(&files.certificate),
        "--cluster-tls-key".to_owned(),
        path(&files.key),
        "--cluster-tls-ca".to_owned(),
        path(files.authorities.as_ref().unwrap()),
    ]
}

impl Coordinator {
    async fn start(authority: &Authority) -> Self {
        let data = tempfile::tempdir().unwrap();
        let http = authority.issue("http", &HTTP_NAMES, Validity::Now);
        let model = format!("demo={}", demo_model().display());
        let mut args = cluster_flags(&authority.member(Role::Coordinator));
        args.extend([
            "--tls-cert".to_owned(),
            http.certificate.to_str().unwrap().to_owned(),
            "--tls-key".to_owned(),
            http.key.to_str().unwrap().to_owned(),
        ]);
        let words = ["coordinator", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--model"];
        let more = ["--data", data.path().to_str().unwrap(), "--log-format", "json"];
        let words = words.into_iter().chain([model.as_str()]).chain(more);
        let args: Vec<_> = words.chain(args.iter().map(String::as_str)).collect();
        let mut process = Process::start(program(&args).env("SWITCHYARD_API_KEY", KEY));
        let line = process.line_with("coordinator listens").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| line[name].as_str().unwrap().to_owned();
        Self { process, http: address("http"), grpc: address("grpc"), _data: data }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.http)
    }
}

fn worker(grpc: &str, tls: &[String]) -> Process {
    let model = format!("demo={}", demo_model().display());
    let coordinator = format!("{}://{grpc}", if tls.is_empty() { "http" } else { "https" });
    let words = ["worker", "--world-size", "2", "--threads", "1", "--coordinator", &coordinator];
    let words = words.into_iter().chain(["--model", model.as_str()]);
    let args: Vec<_> = words.chain(tls.iter().map(String::as_str)).collect();
    Process::start(&mut program(&args))
}

/// A client that trusts one authority only.
fn client(authority: &Authority) -> reqwest::Client {
    // Every test tries; the first one wins.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pem = std::fs::read(authority.certificate()).unwrap();
    let certificate = reqwest::Certificate::from_pem(&pem).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([certificate])
        .timeout(PATIENCE)
        .pool_max_idle_per_host(0)
        .build()
        .unwrap()
}

#[tokio::test]
async fn certificates_change_under_a_running_stream() {
    let authority = Authority::new();
    let coordinator = Coordinator::start(&authority).await;
    let client = client(&authority);
    let member = authority.member(Role::Worker);
    let workers = [(); 2].map(|()| worker(&coordinator.grpc, &cluster_flags(&member)));
    let ready = async || {
        let ready = client.get(coordinator.url("/health/ready")).send().await;
        ready.is_ok_and(|response| response.status().as_u16() == 200)
    };
    eventually("the cluster is ready", ready).await;

    let mut request = question(1000);
    request["model"] = json!("demo");
    request["stream"] = json!(true);
    request["ignore_eos"] = json!(true);
    let stream = async || {
        let chat = client.post(coordinator.url("/v1/chat/completions")).bearer_auth(KEY);
        let text = chat.json(&request).send().await.unwrap().text().await.unwrap();
        assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"));
    };
    stream().await;

    // New certificates for everybody, in the same files.
    let _ = authority.member(Role::Coordinator);
    let _ = authority.member(Role::Worker);
    let _ = authority.issue("http", &HTTP_NAMES, Validity::Now);
    let taken_over = async || {
        let metrics = client.get(coordinator.url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        ["http", "cluster"].iter().all(|usage| {
            let line =
                format!("switchyard_tls_reloads_total{{usage=\"{usage}\",outcome=\"taken_over\"}}");
            metrics.contains(&line)
        })
    };
    // One stream after the other, so that one is under way whenever it happens.
    let is_rotated = Cell::new(false);
    let streaming = async {
        while !is_rotated.get() {
            stream().await;
        }
    };
    let rotating = async {
        eventually("the new certificates are in use", taken_over).await;
        is_rotated.set(true);
    };
    tokio::join!(streaming, rotating);
    // What is formed from now on shows the new ones, too.
    let third = worker(&coordinator.grpc, &cluster_flags(&member));
    let [first, second] = workers;
    first.signal("KILL").await;
    let mut request = question(8);
    request["model"] = json!("demo");
    let answered = async || {
        let chat = client.post(coordinator.url("/v1/chat/completions")).bearer_auth(KEY);
        let answer = chat.json(&request).send().await;
        answer.is_ok_and(|answer| answer.status().as_u16() == 200)
    };
    eventually("a question is answered after the change", answered).await;
    coordinator.process.signal("TERM").await;
    for process in [coordinator.process, second, third] {
        let (status, output) = process.wait().await;
        assert!(status.success(), "{output}");
    }
}

#[tokio::test]
async fn a_worker_without_a_certificate_stays_outside() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let coordinator = Coordinator::start(&authority).await;
    let mut plain = worker(&coordinator.grpc, &[]);
    plain.line_with("not registered, trying again").await;
    let mut stranger = worker(&coordinator.grpc, &cluster_flags(&foreign.member(Role::Worker)));
    stranger.line_with("not registered, trying again").await;
    // One of the cluster, but with another role.
    let other = authority.issue("other", &[Role::Coordinator.name()], Validity::Now);
    let other = cluster_flags(&other);
    let (status, output) = worker(&coordinator.grpc, &other).wait().await;
    assert!(!status.success() && output.contains("does not carry the DNS name"), "{output}");
}

#[tokio::test]
async fn ten_thousand_idle_connections_do_not_hold_up_a_request() {
    let up = Up::start(&["--workers", "1"]).await;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Where a system allows this process fewer files, the crowd is smaller.
    let crowd = limit.maximum.unwrap_or(u64::MAX).min(10_500) - 500;
    let address = up.url.trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for number in 0..crowd {
        idle.push(TcpStream::connect(&address).await.unwrap());
        if number % 2_000 == 0 {
            up.answer().await;
        }
    }
    assert!(!up.answer().await.is_empty());
    let metrics = up.get("/metrics").await.1;
    let open =
        metrics.lines().find_map(|line| line.strip_prefix("switchyard_connections{api=\"http\"} "));
    assert!(open.unwrap().parse::<f64>().unwrap() <= 4_200.0, "{open:?}");
    drop(idle);
    up.stop().await;
}

#[tokio::test]
async fn what_the_command_line_does_to_keys_is_recorded() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().to_str().unwrap();
    let (_, created) = run(&["keys", "--data", data, "create", "--name", "app"]).await;
    let key = created.lines().find(|line| line.starts_with("sk-")).unwrap();
    let (_, revoked) = run(&["keys", "--data", data, "--log-format", "json", "revoke", "1"]).await;
    let line = revoked.lines().find(|line| line.contains("\"target\":\"audit\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["by"], &line["action"]), (&json!("cli"), &json!("revoke_key")));
    assert_eq!((&line["key.id"], &line["outcome"]), (&json!(1), &json!("ok")));
    let audit = created.lines().find(|line| line.contains("audit")).unwrap();
    assert!(audit.contains("create_key") && !audit.contains(key), "{audit}");
    let (status, failed) = run(&["keys", "--data", data, "disable", "999"]).await;
    assert!(!status.success() && failed.contains("outcome=\"failed\""), "{failed}");
}
