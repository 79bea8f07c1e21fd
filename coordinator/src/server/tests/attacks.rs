//! A coordinator with TLS, and those who come without it, with too little of it, or as somebody else.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use switchyard_proto::cluster::RegisterRequest;
use switchyard_proto::cluster::cluster_client::ClusterClient;
use switchyard_proto::inference::ListModelsRequest;
use switchyard_proto::inference::inference_client::InferenceClient;
use switchyard_tls::testing::{Authority, Validity};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::*;

/// A running coordinator, and whoever has issued its certificates.
struct Secured {
    authority: Arc<Authority>,
    http: SocketAddr,
    grpc: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), Error>>,
    _setup: Setup,
}

impl Secured {
    async fn start() -> Self {
        let (setup, authority) = (Setup::new(), Arc::new(Authority::new()));
        let mut options = setup.options();
        options.tls.http = Some(authority.issue("http", &["localhost"], Validity::Now));
        options.tls.cluster = Some(authority.member(Role::Coordinator));
        let bound = Coordinator::bind(options).await.unwrap();
        let (http, grpc) = (bound.http_addr(), bound.grpc_addr());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(bound.serve(stop.clone()));
        Self { authority, http, grpc, stop, serving, _setup: setup }
    }

    /// A gRPC channel of somebody who shows no certificate.
    async fn anonymous(&self) -> Channel {
        let (authority, grpc) = (Arc::clone(&self.authority), self.grpc);
        let dial = tower::service_fn(move |_: Uri| {
            let authority = Arc::clone(&authority);
            async move { authority.dial(grpc, "localhost", "h2").await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(dial).await.unwrap()
    }

    /// A gRPC channel of a process with a role, of the cluster of `authority`.
    async fn member(&self, authority: &Authority, role: Role) -> Channel {
        let files = authority.member(role);
        let ca = files.authorities.as_ref().unwrap();
        std::fs::copy(self.authority.certificate(), ca).unwrap();
        let security = Security::open(Some(&files), Usage::Cluster(role)).await.unwrap();
        let connector = security.connector(switchyard_tls::Service::Clients, Role::Coordinator);
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        endpoint.connect_with_connector_lazy(connector.service())
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

/// What comes back from a port for raw bytes, until it closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// How a client of TLS 1.0 (minor 1) or 1.1 (minor 2) begins.
fn client_hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    // No session; two suites of that time; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
    let mut record = vec![22, 3, 1, 0, u8::try_from(hello.len() + 4).unwrap(), 1, 0, 0];
    record.push(u8::try_from(hello.len()).unwrap());
    record.extend(hello);
    record
}

#[tokio::test]
async fn plain_text_and_old_versions_get_an_alert_and_no_answer() {
    let server = Secured::start().await;
    for port in [server.http, server.grpc] {
        let answer = raw(port, b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.first().is_none_or(|byte| *byte == 21), "{answer:?}");
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
        for minor in [1, 2] {
            let answer = raw(port, &client_hello(minor)).await;
            // Fatal: no handshake so, or not in this version.
            assert!(matches!(answer[..], [21, 3, 3, 0, 2, 2, 40 | 70]), "{answer:?}");
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_client_needs_no_certificate_but_a_key() {
    let server = Secured::start().await;
    let stream = server.authority.dial(server.http, "localhost", "http/1.1").await;
    let mut stream = stream.unwrap();
    let request = format!(
        "GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("tiny"), "{answer}");

    let mut client = InferenceClient::new(server.anonymous().await);
    let refused = client.list_models(ListModelsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let mut request = tonic::Request::new(ListModelsRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    assert_eq!(client.list_models(request).await.unwrap().into_inner().models.len(), 1);
    drop(client);
    server.end().await;
}

#[tokio::test]
async fn only_a_worker_of_the_cluster_registers() {
    let server = Secured::start().await;
    let register = async |channel: Channel| {
        let request = RegisterRequest { model: "another".to_owned(), ..Default::default() };
        ClusterClient::new(channel).register(request).await.map(|_| ()).unwrap_err()
    };
    let refused = register(server.anonymous().await).await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let refused = register(server.member(&server.authority, Role::Coordinator).await).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = register(server.member(&Authority::new(), Role::Worker).await).await;
    assert!(![Code::NotFound, Code::Ok].contains(&refused.code()), "{refused}");
    // One that may register is asked what for.
    let refused = register(server.member(&server.authority, Role::Worker).await).await;
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    server.end().await;
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_said_at_the_start() {
    let (setup, authority) = (Setup::new(), Authority::new());
    let mut options = setup.options();
    options.tls.cluster = Some(authority.member(Role::Worker));
    let error = Coordinator::bind(options).await.unwrap_err().to_string();
    assert!(error.contains("does not carry the DNS name switchyard-coordinator"), "{error}");
    let mut options = setup.options();
    options.tls.http = Some(authority.issue("old", &["localhost"], Validity::Past));
    let error = Coordinator::bind(options).await.unwrap_err().to_string();
    assert!(error.starts_with("TLS cannot be set up: ") && error.contains("expired"), "{error}");
}
