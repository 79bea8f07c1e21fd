use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::testing::{Authority, Validity};
use crate::*;

/// What both sides of one connection make of it: who the client saw answering and whom the server saw.
async fn meet(acceptor: &Acceptor, connector: &Connector) -> Result<Peer, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream =
            acceptor.accept(stream).await.map_err(|error| format!("server: {error}"))?;
        stream.write_all(b"welcome").await.unwrap();
        stream.flush().await.unwrap();
        Ok(stream.peer())
    };
    let client = async {
        let stream = connector.connect(&address).await;
        let mut stream = stream.map_err(|error| format!("client: {error}"))?;
        let mut word = [0; 7];
        // In TLS 1.3 a server's refusal comes after the client's handshake is over.
        stream.read_exact(&mut word).await.map_err(|error| format!("client: {error}"))?;
        assert_eq!(&word, b"welcome");
        Ok::<_, String>(())
    };
    let (server, client) = tokio::join!(server, client);
    match (server, client) {
        (Ok(peer), Ok(())) => Ok(peer),
        (Err(error), Ok(()) | Err(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

async fn secured(files: &Files, role: Role) -> Security {
    Security::open(Some(files), Usage::Cluster(role)).await.unwrap()
}

#[tokio::test]
async fn members_of_a_cluster_meet_and_see_each_others_role() {
    let authority = Authority::new();
    let coordinator = secured(&authority.member(Role::Coordinator), Role::Coordinator).await;
    let worker = secured(&authority.member(Role::Worker), Role::Worker).await;
    for service in [Service::Clients, Service::Control, Service::Data] {
        let acceptor = worker.acceptor(service);
        let peer = meet(&acceptor, &coordinator.connector(service, Role::Worker)).await.unwrap();
        assert_eq!(peer.check(Role::Coordinator), Ok(()));
        assert_eq!(peer.check(Role::Worker), Err(peer::Refused::OtherRole(Role::Worker)));
    }
    let plain = Security::Plain;
    let connector = plain.connector(Service::Data, Role::Worker);
    assert_eq!(meet(&plain.acceptor(Service::Data), &connector).await, Ok(Peer::Unchecked));
}

#[tokio::test]
async fn strangers_and_impostors_are_refused() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let coordinator = secured(&authority.member(Role::Coordinator), Role::Coordinator).await;
    let worker = secured(&authority.member(Role::Worker), Role::Worker).await;
    let stranger = secured(&foreign.member(Role::Coordinator), Role::Coordinator).await;
    let control = worker.acceptor(Service::Control);

    // One of another authority, which trusts ours.
    let files = foreign.member(Role::Coordinator);
    std::fs::copy(authority.certificate(), files.authorities.as_ref().unwrap()).unwrap();
    let trusting = secured(&files, Role::Coordinator).await;
    let error = meet(&control, &trusting.connector(Service::Control, Role::Worker)).await;
    let error = error.unwrap_err();
    assert!(error.starts_with("server: invalid peer certificate"), "{error}");
    // One that does not trust ours.
    let error = meet(&control, &stranger.connector(Service::Control, Role::Worker)).await;
    assert!(error.is_err(), "{error:?}");
    // A worker where the coordinator should be.
    let error = meet(&control, &worker.connector(Service::Control, Role::Coordinator)).await;
    assert!(error.as_ref().is_err_and(|error| error.contains("ertificate")), "{error:?}");
    // The right party, on the wrong port.
    let error = meet(&control, &coordinator.connector(Service::Data, Role::Worker)).await;
    assert!(error.as_ref().is_err_and(|error| error.contains("rotocol")), "{error:?}");
    // No TLS at all, either way.
    let plain = Security::Plain.connector(Service::Control, Role::Worker);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = plain.connect(&listener.local_addr().unwrap().to_string()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    assert!(control.accept(accepted).await.is_err());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_anonymous_or_refused() {
    let authority = Authority::new();
    let worker = secured(&authority.member(Role::Worker), Role::Worker).await;
    for (service, expected) in
        [(Service::Clients, Some(Peer::Anonymous)), (Service::Control, None), (Service::Data, None)]
    {
        let acceptor = worker.acceptor(service);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let protocol = String::from_utf8(service.protocols().remove(0)).unwrap();
        let client = authority.dial(address, Role::Worker.name(), &protocol);
        let server = async { acceptor.accept(listener.accept().await.unwrap().0).await };
        let (_, server) = tokio::join!(client, server);
        assert_eq!(server.ok().map(|stream| stream.peer()), expected, "{service:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_the_start() {
    let authority = Authority::new();
    let role = Role::Worker;
    let usage = Usage::Cluster(role);
    let check = async |files: &Files, part: &str| {
        let error = Identity::open(files.clone(), usage).await.unwrap_err().to_string();
        assert!(error.contains(part), "{part:?} is not in {error}");
    };
    let good = authority.member(role);
    assert!(Identity::open(good.clone(), usage).await.is_ok());
    let other = authority.issue("other", &["switchyard-coordinator"], Validity::Now);
    check(&other, "does not carry the DNS name switchyard-worker").await;
    check(&authority.issue("old", &[role.name()], Validity::Past), "expired at Unix time").await;
    check(&Files { key: other.key.clone(), ..good.clone() }, "cannot be used for the certificate")
        .await;
    check(&Files { key: "nowhere.key".into(), ..good.clone() }, "cannot read nowhere.key").await;
    check(&Files { certificate: good.key.clone(), ..good.clone() }, "holds no certificate").await;
    check(&Files { authorities: Some(good.key.clone()), ..good.clone() }, "holds no certificate")
        .await;
    check(&Files { key: good.certificate.clone(), ..good.clone() }, "is no PEM file").await;
}

#[tokio::test(start_paused = true)]
async fn new_files_are_taken_over_and_broken_ones_are_not() {
    let (authority, next) = (Authority::new(), Authority::new());
    let names = [Role::Worker.name()];
    let files = authority.member(Role::Worker);
    let mut identity = Identity::open(files.clone(), Usage::Cluster(Role::Worker)).await.unwrap();
    let first = identity.current().digest;

    // Neither a certificate whose key has not come yet, nor an expired one, nor none.
    let dir = files.certificate.parent().unwrap();
    let key = std::fs::read(&files.key).unwrap();
    let good = std::fs::read(&files.certificate).unwrap();
    let _ = next.issue_to(dir, &names, Validity::Past);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let _ = next.issue_to(dir, &names, Validity::Now);
    let new_key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, key).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(identity.current().digest, first);

    std::fs::write(&files.key, new_key).unwrap();
    identity.changed().await;
    assert_ne!(identity.current().digest, first);
    assert_ne!(std::fs::read(&files.certificate).unwrap(), good);

    // Both ends follow: members of the new authority meet.
    let worker = Security::Tls(identity);
    let coordinator = secured(&next.member(Role::Coordinator), Role::Coordinator).await;
    let acceptor = worker.acceptor(Service::Control);
    tokio::time::resume();
    let connector = coordinator.connector(Service::Control, Role::Worker);
    assert!(meet(&acceptor, &connector).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_begin_ends_in_time() {
    let authority = Authority::new();
    let worker = secured(&authority.member(Role::Worker), Role::Worker).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let error = worker.acceptor(Service::Http).accept(stream).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}
