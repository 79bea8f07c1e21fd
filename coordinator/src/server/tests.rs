use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::chat::compat::Compat;
use crate::election::ElectionOptions;
use crate::options::{
    AdminOptions, BatchLimits, ConnectionLimits, FileLimits, Limits, Secret, Tls,
};
use crate::testing::{self, KEY, ModelDir};

mod attacks;

struct Setup {
    model: ModelDir,
    data: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { model: ModelDir::new(), data: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        Options {
            http: ([127, 0, 0, 1], 0).into(),
            grpc: ([127, 0, 0, 1], 0).into(),
            tls: Tls::default(),
            connections: ConnectionLimits::default(),
            data_dir: self.data.path().join("new"),
            database_url: None,
            models: vec![self.model.options()],
            bootstrap_key: Some(Secret::new(KEY)),
            admin: None,
            compat: Compat::default(),
            playground: false,
            election: ElectionOptions::None,
            limits: Limits::default(),
            file_store: None,
            files: FileLimits::default(),
            batches: BatchLimits::default(),
            metrics: testing::metrics(),
            metrics_aliases: None,
        }
    }
}

/// One request over a connection of its own; status line and body.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let (head, body) = exchange(address, path).await;
    (head.lines().next().unwrap().to_owned(), body)
}

/// The same, with all of the head.
async fn exchange(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// An election whose outcome the test decides.
#[derive(Debug)]
struct Told(watch::Receiver<Standing>);

impl Election for Told {
    fn run(
        mut self: Box<Self>,
        standing: watch::Sender<Standing>,
        stop: CancellationToken,
    ) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                standing.send_replace(self.0.borrow_and_update().clone());
                tokio::select! {
                    () = stop.cancelled() => return,
                    told = self.0.changed() => told.unwrap(),
                }
            }
        })
    }
}

/// A coordinator whose election the test decides, from the beginning on.
async fn bind_told(setup: &Setup, begin: Standing) -> (Bound, watch::Sender<Standing>) {
    let mut bound = Coordinator::bind(setup.options()).await.unwrap();
    let (told, standing) = watch::channel(begin);
    bound.election = Box::new(Told(standing));
    (bound.grpc, bound.grpc_addr) = Port::reserve(
        Api::Grpc,
        ([127, 0, 0, 1], 0).into(),
        &Security::Plain,
        &ConnectionLimits::default(),
    )
    .unwrap();
    (bound, told)
}

#[tokio::test]
async fn a_standby_lives_refuses_and_takes_over_and_a_loser_stops_at_once() {
    let setup = Setup::new();
    let leader = Some("another".to_owned());
    let (bound, told) = bind_told(&setup, Standing::StandsBy { leader }).await;
    let (http, grpc) = (bound.http_addr(), bound.grpc_addr());
    let serving = tokio::spawn(bound.serve(CancellationToken::new()));

    assert_eq!(get(http, "/health/live").await.0, "HTTP/1.1 200 OK");
    let (status, body) = get(http, "/health/ready").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains(r#""status":"standby","leader":"another""#), "{body}");
    for (path, kind) in [("/v1/models", "server_error"), ("/v1/messages/x", "overloaded_error")] {
        let (head, body) = exchange(http, path).await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(head.contains("retry-after: 1"), "{head}");
        assert!(body.contains("stands by, another leads") && body.contains(kind), "{body}");
    }
    // Workers who know several addresses go on to the next.
    let refused = TcpStream::connect(grpc).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    told.send_replace(Standing::Leads);
    while TcpStream::connect(grpc).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(http, "/v1/models").await.0, "HTTP/1.1 200 OK");
    let (_, body) = get(http, "/health/ready").await;
    assert!(body.contains(r#""status":"not ready","models""#), "{body}");

    told.send_replace(Standing::Lost { reason: "no answer".to_owned() });
    let error = serving.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::LostLead(reason) if reason == "no answer"), "{error}");
    assert!(TcpStream::connect(http).await.is_err());
    assert!(TcpStream::connect(grpc).await.is_err());
}

#[tokio::test]
async fn a_standby_stops_when_told_although_a_client_is_connected() {
    let setup = Setup::new();
    let (bound, _told) = bind_told(&setup, Standing::StandsBy { leader: None }).await;
    let http = bound.http_addr();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(bound.serve(shutdown.clone()));
    let _idle = TcpStream::connect(http).await.unwrap();
    assert!(get(http, "/v1/models").await.1.contains("nobody leads yet"));
    shutdown.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn both_ports_answer_before_a_worker_came_and_stop_when_told() {
    let setup = Setup::new();
    let bound = Coordinator::bind(setup.options()).await.unwrap();
    let (http, grpc) = (bound.http_addr(), bound.grpc_addr());
    assert_ne!(http.port(), 0);
    assert_eq!(bound.statuses()[0].0, testing::MODEL);
    assert!(bound.keys().check(KEY).await.is_ok());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(bound.serve(shutdown.clone()));

    assert_eq!(get(http, "/health/live").await.0, "HTTP/1.1 200 OK");
    let (status, body) = get(http, "/health/ready").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains("no worker has registered"), "{body}");
    assert!(get(http, "/v1/models").await.1.contains("\"id\":\"tiny\""));

    // An idle connection must not hold up the end.
    let _idle = TcpStream::connect(http).await.unwrap();
    let mut health = health_client(grpc).await;
    for service in ["", "switchyard.v1.Inference"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    }
    let unknown = tonic_health::pb::HealthCheckRequest { service: "nobody".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    drop(health);

    shutdown.cancel();
    serving.await.unwrap().unwrap();
    assert!(TcpStream::connect(http).await.is_err());
    assert!(TcpStream::connect(grpc).await.is_err());
}

#[tokio::test]
async fn the_admin_api_listens_apart_and_usage_is_recorded_to_the_end() {
    use crate::auth::ledger::{self, Tokens, Usage};
    use crate::auth::report::{GroupBy, Query};
    let setup = Setup::new();
    let mut options = setup.options();
    // The client's key serves as the admin's here: `get` sends it.
    let listen = Some(([127, 0, 0, 1], 0).into());
    options.admin = Some(AdminOptions { key: Secret::new(KEY), listen });
    let url = options.database_url();
    let bound = Coordinator::bind(options).await.unwrap();
    let (http, admin) = (bound.http_addr(), bound.admin_addr().unwrap());
    let accounts = bound.context.accounts.clone();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(bound.serve(shutdown.clone()));
    assert!(get(admin, "/admin/v1/keys").await.1.contains("bootstrap"));
    assert_eq!(get(admin, "/v1/models").await.0, "HTTP/1.1 404 Not Found");
    assert_eq!(get(http, "/admin/v1/keys").await.0, "HTTP/1.1 404 Not Found");

    let key_id = accounts.authenticate(KEY).await.unwrap().key_id();
    let tokens = Tokens { prompt: 5, ..Tokens::default() };
    let usage = Usage { key_id, model: testing::MODEL.into(), tokens };
    accounts.ledger().record(usage.clone());
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    assert_eq!(accounts.ledger().charge(usage).await, Err(ledger::Error::Closed));
    let keys = KeyStore::open(&url).await.unwrap();
    let today = keys.clock().today();
    let from = today.yesterday().unwrap();
    let query = Query { from, to: today, key_id: None, model: None, group_by: GroupBy::Model };
    assert_eq!(keys.usage(&query).await.unwrap()[0].tokens, tokens);
}

async fn health_client(
    address: SocketAddr,
) -> tonic_health::pb::health_client::HealthClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn what_cannot_be_used_is_named_and_nothing_is_left_half_started() {
    type Spoil = fn(&mut Options, &Setup);
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap();
    let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = _listener.local_addr().unwrap();
    assert_ne!(taken, in_use);
    let cases: [(Spoil, &[&str]); 6] = [
        (|options, _| options.models.clear(), &["there is no model to serve"]),
        (
            |options, _| options.models.push(options.models[0].clone()),
            &["model tiny is configured twice"],
        ),
        (|options, _| options.models[0].dir.push("nowhere"), &["cannot read", "config.json"]),
        (
            |options, setup| {
                let file = setup.data.path().join("file");
                std::fs::write(&file, "").unwrap();
                options.data_dir = file.join("below");
            },
            &["cannot create the data folder", "file/below"],
        ),
        (
            |options, setup| {
                let file = setup.data.path().join("corrupt.db");
                std::fs::write(&file, "no database at all, but long enough".repeat(100)).unwrap();
                options.database_url = Some(format!("sqlite://{}", file.display()));
            },
            &["cannot use the key database", "corrupt.db", "file is not a database"],
        ),
        (
            |options, _| options.bootstrap_key = Some(Secret::new("two words")),
            &["the key must consist of visible ASCII characters"],
        ),
    ];
    for (spoil, expect) in cases {
        let setup = Setup::new();
        let mut options = setup.options();
        spoil(&mut options, &setup);
        let error = Coordinator::bind(options).await.expect_err(expect[0]).to_string();
        assert!(expect.iter().all(|expect| error.contains(expect)), "{error}");
    }
    for (api, name) in [(0, "HTTP"), (1, "gRPC")] {
        let setup = Setup::new();
        let mut options = setup.options();
        *[&mut options.http, &mut options.grpc][api] = in_use;
        let error = Coordinator::bind(options).await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot listen on {in_use} for {name}")), "{error}");
        assert!(error.contains("in use"), "{error}");
    }
}

#[tokio::test]
async fn reflection_lists_all_services_in_both_versions() {
    use tonic_reflection::pb::{v1, v1alpha};
    let setup = Setup::new();
    let bound = Coordinator::bind(setup.options()).await.unwrap();
    let address = format!("http://{}", bound.grpc_addr());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(bound.serve(shutdown.clone()));
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    let channel = endpoint.connect().await.unwrap();

    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let requests = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    for service in
        ["switchyard.v1.Inference", "switchyard.cluster.v1.Cluster", "grpc.health.v1.Health"]
    {
        assert!(answer.contains(service), "{service} is not in {answer}");
    }
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "switchyard.v1.ChatRequest".into(),
            ),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let requests = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(answer.contains("FileDescriptorResponse"), "{answer}");
    drop(client);
    shutdown.cancel();
    serving.await.unwrap().unwrap();
}
