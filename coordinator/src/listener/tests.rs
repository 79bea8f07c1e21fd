use std::collections::BTreeSet;

use axum::routing::get;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::DropGuard;

use super::*;

/// Longer than any limit of these tests.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(200);

/// A listener that serves three paths: `/`, `/slow` until it is told to go on, and `/body` the length of what was sent.
struct Server {
    address: SocketAddr,
    go_on: Arc<Semaphore>,
    begun: watch::Receiver<u32>,
    _stop: DropGuard,
}

impl Server {
    async fn start(api: Api, limits: ConnectionLimits) -> Self {
        let any = ([127, 0, 0, 1], 0).into();
        let (listener, address) = Listener::bind(api, any, &Security::Plain, limits).await.unwrap();
        let go_on = Arc::new(Semaphore::new(0));
        let (begin, begun) = watch::channel(0);
        let waiting = Arc::clone(&go_on);
        let slow = async move || {
            begin.send_modify(|begun| *begun += 1);
            waiting.acquire().await.unwrap().forget();
            "done"
        };
        let router = Router::new()
            .route("/", get(async || "hello"))
            .route("/slow", get(slow))
            .route("/body", axum::routing::post(async |body: String| body.len().to_string()));
        let stop = CancellationToken::new();
        tokio::spawn(listener.serve(router, stop.clone()));
        Self { address, go_on, begun, _stop: stop.drop_guard() }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        header_read_timeout: LONG,
        keep_alive_timeout: LONG,
        write_timeout: LONG,
        ..ConnectionLimits::default()
    }
}

/// Sends bytes and reads what comes until the connection ends, or an answer is whole. An end by force is an end.
async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> String {
    let _ = stream.write_all(bytes).await;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(len) => answer.extend_from_slice(&piece[..len]),
        }
        if answer.ends_with(b"hello") || answer.ends_with(b"done") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn who_says_nothing_or_never_ends_a_header_is_cut_off() {
    let limits = ConnectionLimits { header_read_timeout: SHORT, ..limits() };
    let server = Server::start(Api::Http, limits).await;
    for beginning in [&b""[..], b"G", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-", b"PRI"] {
        assert_eq!(exchange(&mut server.connect().await, beginning).await, "", "{beginning:?}");
    }
    // Nor does a byte now and then help, nor a first request that was fine.
    let mut stream = server.connect().await;
    assert!(exchange(&mut stream, GET).await.starts_with("HTTP/1.1 200"));
    let (mut read, mut write) = stream.into_split();
    let trickle = async {
        write.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        while write.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let end = async {
        let mut byte = [0; 1];
        assert!(!matches!(read.read(&mut byte).await, Ok(1)));
    };
    tokio::join!(trickle, end);
}

#[tokio::test]
async fn a_quiet_connection_is_kept_for_as_long_as_it_should_and_a_busy_one_for_longer() {
    let limits = ConnectionLimits {
        keep_alive_timeout: 2 * SHORT,
        header_read_timeout: SHORT / 2,
        ..limits()
    };
    let server = Server::start(Api::Http, limits).await;
    let mut quiet = server.connect().await;
    exchange(&mut quiet, GET).await;
    let since = Instant::now();
    assert_eq!(exchange(&mut quiet, b"").await, "", "it is closed");
    assert!(since.elapsed() >= 2 * SHORT, "{:?}", since.elapsed());

    let mut busy = server.connect().await;
    let mut begun = server.begun.clone();
    let asked = async { exchange(&mut busy, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await };
    let told = async {
        begun.wait_for(|begun| *begun == 1).await.unwrap();
        sleep(3 * SHORT).await;
        server.go_on.add_permits(1);
    };
    let (answer, ()) = tokio::join!(asked, told);
    assert!(answer.ends_with("done"), "{answer}");
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_an_idle_one_but_never_of_a_busy_one() {
    let server =
        Server::start(Api::Http, ConnectionLimits { connections_max: 2, ..limits() }).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.begun.clone().wait_for(|begun| *begun == 1).await.unwrap();
    // Crowds that say nothing, and some that were served and stay: whoever asks is answered.
    let mut crowd = Vec::new();
    for _ in 0..50 {
        let mut stream = server.connect().await;
        assert!(exchange(&mut stream, GET).await.ends_with("hello"));
        crowd.push(stream);
        crowd.push(server.connect().await);
    }
    // With all places busy there is none.
    let mut other = server.connect().await;
    other.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.begun.clone().wait_for(|begun| *begun == 2).await.unwrap();
    assert_eq!(exchange(&mut server.connect().await, GET).await, "");
    server.go_on.add_permits(2);
    for mut stream in [busy, other] {
        assert!(exchange(&mut stream, b"").await.ends_with("done"));
    }
    assert!(exchange(&mut server.connect().await, GET).await.ends_with("hello"));
}

#[tokio::test]
async fn headers_are_bounded_in_bytes_and_number() {
    let server = Server::start(Api::Http, limits()).await;
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40 << 10));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    for request in [big, many] {
        let answer = exchange(&mut server.connect().await, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let few = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(50));
    let answer = exchange(&mut server.connect().await, few.as_bytes()).await;
    assert!(answer.ends_with("hello"), "{answer}");
}

// === HTTP/2 by hand ===

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
/// `GET http://a/`, by the static table.
const REQUEST: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 1, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Sends frames until the server ends the connection; the last kinds of frame it sent.
async fn flood(server: &Server, frames: impl IntoIterator<Item = Vec<u8>>) -> (u32, Vec<u8>) {
    let (mut read, mut write) = server.connect().await.into_split();
    let reading = tokio::spawn(async move {
        let (mut kinds, mut header) = (Vec::new(), [0; 9]);
        while read.read_exact(&mut header).await.is_ok() {
            kinds.push(header[3]);
            let len = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let mut payload = vec![0; usize::try_from(len).unwrap()];
            if read.read_exact(&mut payload).await.is_err() {
                break;
            }
        }
        kinds
    });
    write.write_all(PREFACE).await.unwrap();
    write.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut sent = 0;
    for frame in frames {
        if write.write_all(&frame).await.is_err() {
            break;
        }
        sent += 1;
    }
    drop(write);
    (sent, reading.await.unwrap())
}

#[tokio::test]
async fn floods_of_http2_end_the_connection_and_nothing_else() {
    const MANY: u32 = 200_000;
    for api in [Api::Http, Api::Grpc] {
        let server = Server::start(api, limits()).await;
        // A header that never ends.
        let mut field = vec![0, 1, b'x', 0x7f, 0x80, 0x1f];
        field.resize(field.len() + 0x7f + (0x1f << 7), b'y');
        let begin = frame(HEADERS, END_STREAM, 1, &REQUEST);
        let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &field), 100_000);
        let (sent, _) = flood(&server, std::iter::once(begin).chain(more)).await;
        assert!(sent < 100_000, "{api:?}: {sent} frames of one header were taken");

        // Requests that are taken back at once.
        let rapid_reset = (0..MANY).map(|index| {
            let stream = 2 * index + 1;
            let mut frames = frame(HEADERS, END_HEADERS | END_STREAM, stream, &REQUEST);
            frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            frames
        });
        let (sent, kinds) = flood(&server, rapid_reset).await;
        assert!(sent < MANY && kinds.last() != Some(&HEADERS), "{api:?}: {sent} resets were taken");
        assert!(kinds.contains(&GOAWAY) || sent < MANY / 2, "{api:?}: {sent} {kinds:?}");

        // The next is served.
        let one = frame(HEADERS, END_HEADERS | END_STREAM, 1, &REQUEST);
        let (_, kinds) = flood(&server, [one]).await;
        assert!(kinds.contains(&HEADERS), "{api:?}: {kinds:?}");
    }
}

// === Seats ===

proptest! {
    /// Whatever happens: never more places than there are, and who has a request keeps its own.
    #[test]
    fn places_are_bounded_and_the_busy_keep_theirs(max in 1_usize..6, steps: Vec<(u8, u8)>) {
        let seats = Seats::new(max);
        let mut held: Vec<Arc<Seat>> = Vec::new();
        let mut busy = BTreeSet::new();
        for (step, which) in steps {
            let which = usize::from(which) % held.len().max(1);
            match step % 4 {
                0 => match seats.take() {
                    Some(seat) => held.push(seat),
                    None => prop_assert_eq!(busy.len(), max),
                },
                1 if which < held.len() => {
                    let seat = held.remove(which);
                    busy.remove(&seat.id());
                }
                2 if which < held.len() && !held[which].is_evicted() => {
                    held[which].busy();
                    busy.insert(held[which].id());
                }
                3 if which < held.len() => {
                    held[which].idle();
                    busy.remove(&held[which].id());
                }
                _ => {}
            }
            prop_assert!(seats.num_taken() <= max);
            let evicted = held.iter().filter(|seat| seat.is_evicted());
            prop_assert!(evicted.clone().all(|seat| !busy.contains(&seat.id())));
            prop_assert_eq!(seats.num_taken(), held.len() - evicted.count());
        }
    }
}
