//! Forming a mesh over TCP: who is let in, who is refused, and what a stranger can do.

use std::time::Duration;

use futures::future::try_join_all;
use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use switchyard_tls::testing::Authority;
use switchyard_tls::{Role, Security, Usage};
use switchyard_worker::collective::tcp::{FRAME_BYTES_MAX, Group, JoinError, Listener, Tcp};
use switchyard_worker::collective::{self, AllToAll as _, Direction, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Long enough that only a deadlock reaches it.
const PATIENT: Duration = Duration::from_secs(30);
/// For checks that wait until it passes.
const HASTY: Duration = Duration::from_millis(150);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) async fn listeners(world_size: usize) -> Vec<Listener> {
    secured_listeners(world_size, &Security::Plain).await
}

/// A process with a role in a cluster of its own, and the cluster's authority.
pub(crate) async fn member(role: Role) -> (Authority, Security) {
    let authority = Authority::new();
    let security = secured(&authority, role).await;
    (authority, security)
}

/// A process with a role in the cluster of an authority.
pub(crate) async fn secured(authority: &Authority, role: Role) -> Security {
    let files = authority.member(role);
    Security::open(Some(&files), Usage::Cluster(role)).await.unwrap()
}

pub(crate) async fn secured_listeners(world_size: usize, security: &Security) -> Vec<Listener> {
    let any = "127.0.0.1:0".parse().unwrap();
    try_join_all((0..world_size).map(|_| Listener::bind(any, security))).await.unwrap()
}

pub(crate) fn addresses(listeners: &[Listener]) -> Vec<String> {
    listeners.iter().map(|listener| listener.local_addr().to_string()).collect()
}

pub(crate) fn group(epoch: u64, rank: u32, peers: Vec<String>) -> Group {
    Group {
        epoch: GroupEpoch(epoch),
        rank: EpRank(rank),
        peers,
        fingerprint: [7; 32],
        exchange_deadline: PATIENT,
    }
}

async fn form(epoch: u64, listeners: &[Listener]) -> Result<Vec<Tcp>, JoinError> {
    let peers = addresses(listeners);
    let joins = listeners
        .iter()
        .zip(0..)
        .map(|(listener, rank)| listener.join(group(epoch, rank, peers.clone()), PATIENT));
    try_join_all(joins).await
}

/// A well-formed hello, byte by byte as the protocol documents it.
pub(crate) fn hello(from: u32, to: u32, epoch: u64) -> Vec<u8> {
    let mut bytes = b"SWYHELLO\x01\0\0\0".to_vec();
    for word in [from, to, 2] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.extend_from_slice(&[7; 32]);
    bytes
}

/// Says `bytes` to `listener` and returns all that it answers.
async fn say(listener: &Listener, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A listener that closes on unread bytes resets the connection.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

pub(crate) fn refusal(answer: &[u8]) -> &str {
    assert_eq!(answer[0], 1, "{answer:?}");
    std::str::from_utf8(&answer[3..]).unwrap()
}

#[tokio::test]
async fn one_listener_serves_epoch_after_epoch() {
    let listeners = listeners(3).await;
    for epoch in [1, 2, 5] {
        let mesh = form(epoch, &listeners).await.unwrap();
        assert_eq!(mesh.len(), 3);
    }
    let error = form(5, &listeners).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "epoch 5 cannot be formed: this rank has already been told of epoch 5"
    );
}

#[tokio::test]
async fn a_stale_hello_is_refused_with_both_epochs() {
    let listeners = listeners(2).await;
    let _mesh = form(4, &listeners).await.unwrap();
    let answer = say(&listeners[0], &hello(1, 0, 3)).await;
    assert_eq!(refusal(&answer), "epoch 3 is stale, this rank is in epoch 4");
    let answer = say(&listeners[0], &hello(1, 0, 4)).await;
    assert_eq!(refusal(&answer), "this rank is no longer forming epoch 4");
}

#[tokio::test]
async fn a_dialling_rank_learns_why_it_is_refused() {
    let listeners = listeners(2).await;
    let peers = addresses(&listeners);
    let ours = listeners[0].join(group(1, 0, peers.clone()), PATIENT);
    let other = Group { fingerprint: [8; 32], ..group(1, 1, peers) };
    let theirs = listeners[1].join(other, PATIENT);
    let error = tokio::select! {
        result = theirs => result.unwrap_err(),
        result = ours => panic!("{result:?}"),
    };
    let message = error.to_string();
    assert!(message.starts_with("rank 0 at 127.0.0.1:"), "{message}");
    assert!(message.ends_with(
        "refused to join epoch 1: it holds another checkpoint or computes in other numerics"
    ));
}

#[tokio::test]
async fn a_rank_that_is_told_late_finds_its_peers_waiting() {
    let listeners = listeners(2).await;
    let peers = addresses(&listeners);
    // Rank 1 dials while rank 0 still knows of no epoch.
    let early = listeners[1].join(group(1, 1, peers.clone()), PATIENT);
    tokio::pin!(early);
    for _ in 0..100 {
        tokio::select! {
            biased;
            result = &mut early => panic!("{result:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    let late = listeners[0].join(group(1, 0, peers), PATIENT);
    let (early, late) = tokio::join!(early, late);
    early.unwrap();
    late.unwrap();
}

#[tokio::test]
async fn strangers_do_not_hurt_a_forming_mesh() {
    let listeners = listeners(2).await;
    let peers = addresses(&listeners);
    let waiting = listeners[0].join(group(1, 0, peers.clone()), PATIENT);
    let strangers = async {
        assert_eq!(say(&listeners[0], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, b"");
        assert_eq!(say(&listeners[0], &[0xff; 100_000]).await, b"");
        // Half a hello, then silence: the connection stays open while the mesh is formed.
        let mut silent = TcpStream::connect(listeners[0].local_addr()).await.unwrap();
        silent.write_all(&hello(1, 0, 1)[..40]).await.unwrap();
        // Ranks that do not belong here.
        let answer = say(&listeners[0], &hello(1, 1, 1)).await;
        assert_eq!(refusal(&answer), "it looks for rank 1, this is rank 0");
        let answer = say(&listeners[0], &hello(2, 0, 1)).await;
        assert_eq!(refusal(&answer), "rank 2 is not to dial rank 0");
        let mut other_version = hello(1, 0, 1);
        other_version[8] = 2;
        let answer = say(&listeners[0], &other_version).await;
        assert_eq!(
            refusal(&answer),
            "it speaks version 2 of the rank protocol, this rank speaks 1"
        );
        let joined = listeners[1].join(group(1, 1, peers.clone()), PATIENT).await;
        drop(silent);
        joined
    };
    let (ours, theirs) = tokio::join!(waiting, strangers);
    ours.unwrap();
    theirs.unwrap();
}

/// Joins a mesh of two as rank 1 without being one, sends `bytes`, and closes; returns what rank 0 makes of it.
fn impostor(bytes: Vec<u8>) -> collective::Error {
    let (mut rank_0, mut stream) = runtime().block_on(async {
        let listener = listeners(1).await.remove(0);
        let peers = vec![listener.local_addr().to_string(), "127.0.0.1:1".to_owned()];
        let impostor = async {
            let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
            stream.write_all(&hello(1, 0, 4)).await.unwrap();
            let mut answer = [9; 3];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [0; 3], "welcome");
            let stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream
        };
        let (rank_0, stream) = tokio::join!(listener.join(group(4, 0, peers), PATIENT), impostor);
        (rank_0.unwrap(), stream)
    });
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Rank 0 may hang up before all is written.
            let _ = std::io::Write::write_all(&mut stream, &bytes);
        });
        let phase = Phase { step: StepId(1), layer: 0, direction: Direction::Dispatch };
        let buffers = [Vec::new(), Vec::new()];
        rank_0.exchange(phase, &buffers, &mut buffers.clone()).unwrap_err()
    })
}

/// The header of a frame of rows for step 1, layer 0, dispatch.
fn frame_header(epoch: u64, rank: u32, len: u64) -> Vec<u8> {
    let mut bytes = b"SWYF\x01\x01\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&rank.to_le_bytes());
    for word in [epoch, 1, len] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[test]
fn wrong_frames_are_refused_and_name_their_sender() {
    let check = |bytes: Vec<u8>, expected: &str| {
        assert_eq!(impostor(bytes).to_string(), expected);
    };
    let malformed = "rank 1 sent a malformed frame in step 1 layer 0 dispatch";
    check(frame_header(3, 1, 0), "rank 1 sent a frame of epoch 3, this group is in epoch 4");
    check(frame_header(4, 2, 0), &format!("{malformed}: it says to come from rank 2"));
    check(
        frame_header(4, 1, FRAME_BYTES_MAX + 1),
        &format!("{malformed}: it announces 2147483649 bytes, the limit is 2147483648"),
    );
    check(
        vec![0xff; 200],
        &format!("{malformed}: it begins with [ff, ff, ff, ff], not [53, 57, 59, 46]"),
    );
}

#[test]
fn a_peer_that_dies_within_a_frame_is_lost() {
    let lost = "rank 1 stopped before step 1 layer 0 dispatch; rank 0 waited for it";
    assert_eq!(impostor(Vec::new()).to_string(), lost);
    assert_eq!(impostor(frame_header(4, 1, 10)[..17].to_vec()).to_string(), lost);
    let mut half = frame_header(4, 1, 1 << 20);
    half.resize(half.len() + (1 << 19), 7);
    assert_eq!(impostor(half).to_string(), lost);
}

#[tokio::test]
async fn a_missing_rank_is_named_by_those_above_and_below() {
    let all = listeners(3).await;
    let peers = addresses(&all);
    // Rank 1 is reachable, but is never told of the epoch.
    let below = all[0].join(group(1, 0, peers.clone()), HASTY);
    let above = all[2].join(group(1, 2, peers.clone()), HASTY);
    let (below, above) = tokio::join!(below, above);
    let message = below.unwrap_err().to_string();
    assert_eq!(message, "rank 1 did not connect for epoch 1 in time");
    let message = above.unwrap_err().to_string();
    assert_eq!(message, format!("rank 1 could not be reached at {} for epoch 1", peers[1]));
}

#[tokio::test]
async fn a_newer_epoch_takes_the_place_of_one_that_is_forming() {
    let all = listeners(2).await;
    let peers = addresses(&all);
    let stuck = all[0].join(group(1, 0, peers.clone()), PATIENT);
    let (stuck, formed) = tokio::join!(biased; stuck, form(2, &all));
    assert!(matches!(stuck, Err(JoinError::Superseded { .. })), "{stuck:?}");
    assert_eq!(formed.unwrap().len(), 2);
}
