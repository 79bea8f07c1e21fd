//! Making the mesh of an epoch: every rank dials the ranks below it and is dialled by those above.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use switchyard_moe::ids::{EpRank, GroupEpoch};
use switchyard_tls::{Acceptor, Connector, Role, Security, Service, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, debug, debug_span, warn};

use super::hello::{self, HELLO_BYTES, Hello};
use super::wire::Wire;
use super::{Tcp, frame};

/// Time that a connecting peer has to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Time that a peer of a coming epoch is kept waiting for this rank to be told of that epoch.
const COMING_EPOCH_WAIT: Duration = Duration::from_secs(30);
/// Connections that have not become peers yet.
const STRANGERS_MAX: usize = 256;
/// First and longest pause between attempts to dial a peer.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(10);
const DIAL_PAUSE_MAX: Duration = Duration::from_millis(320);
/// Pause after the operating system refuses to accept a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(frame::FRAME_BYTES_MAX <= usize::MAX as u64 / 2);

/// The worker's end of the data plane. It lives as long as the worker, across epochs.
#[derive(Debug)]
pub struct Listener {
    local_addr: SocketAddr,
    forming: watch::Sender<Forming>,
    connector: Connector,
    _accepting: AbortOnDropHandle<()>,
}

/// A membership, as one of its ranks sees it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The epoch; greater than that of any group joined before.
    pub epoch: GroupEpoch,
    /// This rank.
    pub rank: EpRank,
    /// `host:port` of every rank's data plane, by rank.
    pub peers: Vec<String>,
    /// Names the checkpoint and numerics; peers of another are refused.
    pub fingerprint: [u8; 32],
    /// How long the ranks may wait for each other in one exchange.
    pub exchange_deadline: Duration,
}

/// Why a mesh did not come about.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// This rank has seen a newer epoch, or this one already.
    #[error("epoch {epoch} cannot be formed: this rank has already been told of epoch {newest}")]
    Stale {
        /// The epoch asked for.
        epoch: GroupEpoch,
        /// The newest epoch that this rank knows.
        newest: GroupEpoch,
    },
    /// A newer epoch was begun meanwhile.
    #[error("epoch {epoch} was given up for a newer one before its mesh was complete")]
    Superseded {
        /// The epoch asked for.
        epoch: GroupEpoch,
    },
    /// A peer could not be reached by the deadline.
    #[error("rank {peer} could not be reached at {address} for epoch {epoch}")]
    Unreachable {
        /// The peer.
        peer: EpRank,
        /// Where it should be.
        address: String,
        /// The epoch asked for.
        epoch: GroupEpoch,
        /// What the last attempt ended in; `None` if it was still going on.
        #[source]
        source: Option<io::Error>,
    },
    /// A peer refused this rank.
    #[error("rank {peer} at {address} refused to join epoch {epoch}: {message}")]
    Refused {
        /// The peer.
        peer: EpRank,
        /// Its address.
        address: String,
        /// The epoch asked for.
        epoch: GroupEpoch,
        /// Its words.
        message: String,
    },
    /// A peer did not dial this rank by the deadline.
    #[error("rank {peer} did not connect for epoch {epoch} in time")]
    Missing {
        /// The first of the peers that are missing.
        peer: EpRank,
        /// The epoch asked for.
        epoch: GroupEpoch,
    },
    /// The operating system refused something.
    #[error("the connections of epoch {epoch} could not be set up")]
    Io {
        /// The epoch asked for.
        epoch: GroupEpoch,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The newest epoch, and how to take part in it.
#[derive(Clone, Debug)]
struct Forming {
    epoch: GroupEpoch,
    /// `None` before the first epoch, and when the mesh is complete or given up.
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    group: Arc<Group>,
    joined: mpsc::Sender<(EpRank, Stream)>,
}

// === impl Listener ===

impl Listener {
    /// Binds `address`; port 0 takes a free one. With TLS all peers must be workers of the cluster. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The operating system's, for instance because the port is in use.
    pub async fn bind(address: SocketAddr, security: &Security) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local_addr = listener.local_addr()?;
        let (forming, _) = watch::channel(Forming { epoch: GroupEpoch(0), open: None });
        let acceptor = security.acceptor(Service::Data);
        let accepting = tokio::spawn(accept(listener, acceptor, forming.clone()));
        let connector = security.connector(Service::Data, Role::Worker);
        let _accepting = AbortOnDropHandle::new(accepting);
        Ok(Self { local_addr, forming, connector, _accepting })
    }

    /// The address bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Connects with every other rank of `group` and returns this rank's end of the mesh. Dropping the future, or
    /// joining a newer epoch, gives it up.
    ///
    /// # Errors
    /// See [`JoinError`]; at the latest when `limit` has passed.
    pub async fn join(&self, group: Group, limit: Duration) -> Result<Tcp, JoinError> {
        let epoch = group.epoch;
        let deadline = Instant::now() + limit;
        let group = Arc::new(group);
        let mut joined = self.open(&group)?;
        let connector = &self.connector;
        let dials = (0..group.rank.0).map(|peer| dial(&group, connector, EpRank(peer), deadline));
        let dialled = async { try_join_all(dials).await };
        let accepted = gather(&group, &mut joined, deadline);
        let result = tokio::try_join!(dialled, accepted);
        self.close(epoch);
        let (below, above) = result?;

        let streams = below.into_iter().map(Some).chain([None]).chain(above.into_iter().map(Some));
        let wires = streams.map(|stream| stream.map(wire).transpose());
        let wires: io::Result<Vec<_>> = wires.collect();
        wires
            .and_then(|wires| Tcp::assemble(&group, wires))
            .map_err(|source| JoinError::Io { epoch, source })
    }

    /// Makes `group` the one that connecting peers join.
    fn open(&self, group: &Arc<Group>) -> Result<mpsc::Receiver<(EpRank, Stream)>, JoinError> {
        let epoch = group.epoch;
        let (sender, joined) = mpsc::channel(group.peers.len());
        let mut newest = GroupEpoch(0);
        let opened = self.forming.send_if_modified(|forming| {
            newest = forming.epoch;
            let is_newer = epoch > forming.epoch;
            if is_newer {
                let open = Open { group: Arc::clone(group), joined: sender };
                *forming = Forming { epoch, open: Some(open) };
            }
            is_newer
        });
        if opened { Ok(joined) } else { Err(JoinError::Stale { epoch, newest }) }
    }

    fn close(&self, epoch: GroupEpoch) {
        self.forming.send_if_modified(|forming| {
            let is_current = forming.epoch == epoch;
            if is_current {
                forming.open = None;
            }
            is_current
        });
    }
}

/// Takes a connection out of the runtime. What the runtime accepts or dials does not block, and stays so.
fn wire(stream: Stream) -> io::Result<Wire> {
    let (socket, tls) = stream.into_std()?;
    Ok(Wire::new(socket, tls))
}

// === the ranks above ===

/// Waits for the streams of all ranks above this one, ascending.
async fn gather(
    group: &Group,
    joined: &mut mpsc::Receiver<(EpRank, Stream)>,
    deadline: Instant,
) -> Result<Vec<Stream>, JoinError> {
    let epoch = group.epoch;
    let first = group.rank.0 + 1;
    let mut streams: Vec<_> = (first as usize..group.peers.len()).map(|_| None).collect();
    while let Some(missing) = streams.iter().position(Option::is_none) {
        let peer = EpRank(first + missing as u32);
        match timeout_at(deadline, joined.recv()).await {
            // A peer that dials twice gave up the first connection.
            Ok(Some((from, stream))) => streams[(from.0 - first) as usize] = Some(stream),
            Ok(None) => return Err(JoinError::Superseded { epoch }),
            Err(_) => return Err(JoinError::Missing { peer, epoch }),
        }
    }
    Ok(streams.into_iter().flatten().collect())
}

/// Accepts connections for as long as the listener lives.
async fn accept(listener: TcpListener, acceptor: Acceptor, forming: watch::Sender<Forming>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let greeting = greet(stream, acceptor.clone(), forming.subscribe());
                let span = debug_span!("collective.accept", %address);
                tokio::spawn(async move {
                    greeting.instrument(span).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "the data plane cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Makes a peer of a connection, or refuses it.
async fn greet(stream: TcpStream, acceptor: Acceptor, mut forming: watch::Receiver<Forming>) {
    let (mut stream, hello) = match meet(stream, &acceptor).await {
        Ok(met) => met,
        Err(reason) => {
            debug!("closed: {reason}");
            return;
        }
    };
    let accepted = match hello {
        Ok(hello) => admit(&hello, &stream, &mut forming).await,
        Err(refusal) => Err(refusal),
    };
    let answered = match accepted {
        Ok((from, place)) => hello::welcome(&mut stream).await.map(|()| {
            place.send((from, stream));
        }),
        Err(refusal) => hello::refuse(&mut stream, &refusal).await,
    };
    if let Err(error) = answered {
        debug!(%error, "closed: it did not wait for the answer");
    }
}

/// Shakes hands and reads what a connection says of itself: a hello, or why its speaker is refused. The error says why the
/// connection is not answered at all.
async fn meet(
    stream: TcpStream,
    acceptor: &Acceptor,
) -> Result<(Stream, Result<Hello, String>), String> {
    let met = timeout(HELLO_DEADLINE, async {
        let mut stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
        stream.peer().check(Role::Worker).map_err(|refused| refused.to_string())?;
        let mut bytes = [0; HELLO_BYTES];
        stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
        Ok((stream, bytes))
    });
    let (stream, bytes) = met.await.unwrap_or_else(|_| Err("no hello in time".to_owned()))?;
    let hello = Hello::decode(&bytes).map_err(|_| "not a rank".to_owned())?;
    Ok((stream, hello))
}

/// Waits until this rank forms the epoch of `hello`, and finds its place there.
async fn admit(
    hello: &Hello,
    stream: &Stream,
    forming: &mut watch::Receiver<Forming>,
) -> Result<(EpRank, mpsc::OwnedPermit<(EpRank, Stream)>), String> {
    let coming = forming.wait_for(|forming| forming.epoch >= hello.epoch);
    let mut probe = [0; 1];
    let hung_up = stream.socket().peek(&mut probe);
    let open = tokio::select! {
        known = timeout(COMING_EPOCH_WAIT, coming) => match known {
            Ok(Ok(forming)) => forming.clone(),
            Ok(Err(_)) => return Err("this rank is stopping".to_owned()),
            Err(_) => return Err(format!("this rank was not told of epoch {}", hello.epoch)),
        },
        // Nothing is to be said before the answer, so this is its end, or a stranger after all.
        _ = hung_up => return Err("it did not wait for the answer".to_owned()),
    };
    if open.epoch > hello.epoch {
        return Err(format!(
            "epoch {} is stale, this rank is in epoch {}",
            hello.epoch, open.epoch
        ));
    }
    let Some(Open { group, joined }) = open.open else {
        return Err(format!("this rank is no longer forming epoch {}", hello.epoch));
    };
    check(hello, &group)?;
    match joined.try_reserve_owned() {
        Ok(place) => Ok((hello.from, place)),
        Err(_) => Err(format!("this rank is no longer forming epoch {}", hello.epoch)),
    }
}

/// Whether `hello` comes from a rank that is to dial this one.
fn check(hello: &Hello, group: &Group) -> Result<(), String> {
    let world_size = group.peers.len() as u32;
    if hello.world_size != world_size {
        return Err(format!("its group has {} ranks, this one has {world_size}", hello.world_size));
    }
    if hello.to != group.rank {
        return Err(format!("it looks for rank {}, this is rank {}", hello.to, group.rank));
    }
    if hello.from <= group.rank || hello.from.0 >= world_size {
        return Err(format!("rank {} is not to dial rank {}", hello.from, group.rank));
    }
    if hello.fingerprint != group.fingerprint {
        return Err("it holds another checkpoint or computes in other numerics".to_owned());
    }
    Ok(())
}

// === the ranks below ===

/// Connects to `peer`, again and again until the deadline.
async fn dial(
    group: &Group,
    connector: &Connector,
    peer: EpRank,
    deadline: Instant,
) -> Result<Stream, JoinError> {
    let address = &group.peers[peer.0 as usize];
    let (epoch, mut last) = (group.epoch, None);
    let mut pause = DIAL_PAUSE_MIN;
    let attempts = async {
        loop {
            match dial_once(group, connector, peer).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(message)) => {
                    let address = address.clone();
                    return Err(JoinError::Refused { peer, address, epoch, message });
                }
                Err(error) => last = Some(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(DIAL_PAUSE_MAX);
        }
    };
    match timeout_at(deadline, attempts).await {
        Ok(result) => result,
        Err(_) => {
            let address = address.clone();
            Err(JoinError::Unreachable { peer, address, epoch, source: last })
        }
    }
}

/// One attempt: the inner error is the peer's refusal.
async fn dial_once(
    group: &Group,
    connector: &Connector,
    peer: EpRank,
) -> io::Result<Result<Stream, String>> {
    let mut stream = connector.connect(&group.peers[peer.0 as usize]).await?;
    let hello = Hello {
        from: group.rank,
        to: peer,
        world_size: group.peers.len() as u32,
        epoch: group.epoch,
        fingerprint: group.fingerprint,
    };
    stream.write_all(&hello.encode()).await?;
    stream.flush().await?;
    Ok(hello::answer(&mut stream).await?.map(|()| stream))
}
