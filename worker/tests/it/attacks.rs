//! What strangers, impostors and whoever is on the way between two ranks can do to a mesh that is protected.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use switchyard_moe::ids::StepId;
use switchyard_tls::testing::Authority;
use switchyard_tls::{Role, Security, Service, Stream};
use switchyard_worker::collective::tcp::{Listener, Tcp};
use switchyard_worker::collective::{self, AllToAll as _, Direction, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mesh::{addresses, group, hello, member, refusal, runtime, secured, secured_listeners};

const PATIENT: Duration = Duration::from_secs(30);
/// Type of a record that carries data.
const APPLICATION_DATA: u8 = 0x17;

/// Says a hello to a rank that waits for epoch 4, and returns what it answers; `None` if nothing sensible.
async fn greet(listener: &Listener, dialler: &Security, hello: &[u8]) -> Option<Vec<u8>> {
    let connector = dialler.connector(Service::Data, Role::Worker);
    let mut stream: Stream = connector.connect(&listener.local_addr().to_string()).await.ok()?;
    let mut answer = Vec::new();
    stream.write_all(hello).await.ok()?;
    stream.flush().await.ok()?;
    // A refusal ends with the connection, a welcome does not.
    let mut byte = [0; 1];
    while answer.len() < 3 || answer[0] == 1 {
        match stream.read(&mut byte).await {
            Ok(1) => answer.push(byte[0]),
            Ok(_) | Err(_) => break,
        }
    }
    (answer.len() >= 3 && answer[0] <= 1).then_some(answer)
}

#[tokio::test]
async fn only_workers_of_the_cluster_become_ranks() {
    let (authority, worker) = member(Role::Worker).await;
    let listener = secured_listeners(1, &worker).await.remove(0);
    let peers = vec![listener.local_addr().to_string(), "127.0.0.1:1".to_owned()];
    let waiting = listener.join(group(4, 0, peers), PATIENT);
    let attacks = async {
        // In plain text, and as a worker of another cluster, and as one of ours that is no worker.
        let plain = greet(&listener, &Security::Plain, &hello(1, 0, 4)).await;
        assert_eq!(plain, None, "plain text");
        let foreign = Authority::new();
        let files = foreign.member(Role::Worker);
        std::fs::copy(authority.certificate(), files.authorities.as_ref().unwrap()).unwrap();
        let usage = switchyard_tls::Usage::Cluster(Role::Worker);
        let foreign = Security::open(Some(&files), usage).await.unwrap();
        assert_eq!(greet(&listener, &foreign, &hello(1, 0, 4)).await, None, "foreign authority");
        let coordinator = secured(&authority, Role::Coordinator).await;
        assert_eq!(greet(&listener, &coordinator, &hello(1, 0, 4)).await, None, "wrong role");
        // A worker, but of an epoch that is over.
        let answer = greet(&listener, &worker, &hello(1, 0, 3)).await.unwrap();
        assert_eq!(refusal(&answer), "epoch 3 is stale, this rank is in epoch 4");
        // The right one.
        greet(&listener, &worker, &hello(1, 0, 4)).await
    };
    let (joined, welcome) = tokio::join!(waiting, attacks);
    joined.unwrap();
    assert_eq!(welcome, Some(vec![0, 0, 0]));
}

/// What is done to a record on its way.
#[derive(Clone, Copy, Debug)]
enum Tampering {
    Replayed,
    Damaged,
    Forged,
}

/// Stands between a dialling rank and the rank at `to`, and tampers with one record once it is told to. Returns its address.
fn stand_between(to: std::net::SocketAddr, how: Tampering, begin: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut dialler, _) = listener.accept().unwrap();
        let mut answerer = TcpStream::connect(to).unwrap();
        let (mut back, mut forth) = (answerer.try_clone().unwrap(), dialler.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut forth);
            let _ = forth.shutdown(Shutdown::Both);
        });
        while let Some(mut record) = read_record(&mut dialler) {
            if record[0] == APPLICATION_DATA && begin.swap(false, Ordering::AcqRel) {
                match how {
                    Tampering::Replayed => record.extend_from_within(..),
                    Tampering::Damaged => *record.last_mut().unwrap() ^= 1,
                    Tampering::Forged => {
                        let mut forged = vec![APPLICATION_DATA, 3, 3, 0, 100];
                        forged.resize(105, 7);
                        record.splice(0..0, forged);
                    }
                }
            }
            if answerer.write_all(&record).is_err() {
                break;
            }
        }
        let _ = answerer.shutdown(Shutdown::Both);
    });
    address
}

fn read_record(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record).ok()?;
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + len, 0);
    from.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

/// Two ranks with somebody between them, who tampers with what rank 1 sends.
fn exchange_under(how: Tampering) -> collective::Error {
    let begin = Arc::new(AtomicBool::new(false));
    let mut mesh: Vec<Tcp> = runtime().block_on(async {
        let (_authority, security) = member(Role::Worker).await;
        let listeners = secured_listeners(2, &security).await;
        let direct = addresses(&listeners);
        let between = stand_between(listeners[0].local_addr(), how, Arc::clone(&begin));
        let detour = vec![between, direct[1].clone()];
        try_join_all([
            listeners[0].join(group(1, 0, direct), PATIENT),
            listeners[1].join(group(1, 1, detour), PATIENT),
        ])
        .await
        .unwrap()
    });
    let (mut rank_1, mut rank_0) = (mesh.pop().unwrap(), mesh.pop().unwrap());
    let rows = || [vec![7; 1000], vec![7; 1000]];
    let phases =
        (1..100).map(|step| Phase { step: StepId(step), layer: 0, direction: Direction::Dispatch });
    begin.store(true, Ordering::Release);
    std::thread::scope(|scope| {
        let other = phases.clone();
        scope.spawn(move || {
            for phase in other {
                if rank_1.exchange(phase, &rows(), &mut rows()).is_err() {
                    return;
                }
            }
        });
        phases
            .map(|phase| rank_0.exchange(phase, &rows(), &mut rows()))
            .find_map(Result::err)
            .unwrap()
    })
}

#[test]
fn what_is_replayed_damaged_or_forged_on_its_way_ends_the_group_and_is_never_used() {
    for how in [Tampering::Replayed, Tampering::Damaged, Tampering::Forged] {
        let error = exchange_under(how).to_string();
        assert!(error.starts_with("rank 1 sent a malformed frame in step "), "{how:?}: {error}");
        assert!(error.contains("TLS refuses its bytes"), "{how:?}: {error}");
    }
}

#[tokio::test]
async fn a_worker_that_is_no_worker_is_not_dialled() {
    let authority = Authority::new();
    let worker = secured(&authority, Role::Worker).await;
    // Somebody with the coordinator's certificate listens where a rank should.
    let coordinator = secured(&authority, Role::Coordinator).await;
    let impostor = secured_listeners(1, &coordinator).await.remove(0);
    let listener = secured_listeners(1, &worker).await.remove(0);
    let peers = vec![impostor.local_addr().to_string(), listener.local_addr().to_string()];
    let error = listener.join(group(1, 1, peers), Duration::from_millis(500)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("certificate not valid for name \"switchyard-worker\""),
        "{error}: {cause}"
    );
}
