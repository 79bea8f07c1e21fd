//! Where connections come in: accepted, protected, bounded in number and time, and handed to a router. One way for the
//! HTTP API, the admin API and gRPC.
//!
//! - [`seats`]: how many there may be, and who has to go for another.
//! - [`activity`]: what a connection is doing, and whether it takes too long.
//! - [`watched`]: bytes on their way, noted in the activity.
//! - [`reserved`]: a port that is not open yet.
//! - [`counted`]: an answer's body, which keeps its connection busy.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use metrics::{counter, gauge};
use switchyard_tls::{Acceptor, Security, Service, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::metric_definitions as names;
use crate::options::ConnectionLimits;
use activity::{Activity, Overdue};
use counted::Counted;
pub(crate) use reserved::Reserved;
use seats::{Seat, Seats};
use watched::Watched;

mod seats;
mod activity;
mod watched;
mod counted;
mod reserved;
#[cfg(test)]
mod tests;

/// Pause after the system refuses to accept a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most fields of a request's header.
const HEADERS_MAX: usize = 100;
/// Most requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 1024;
/// A ping on quiet connections of HTTP/2, so that both sides notice a dead peer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a connection is looked at: a fraction of the shortest limit, within these bounds.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// What is served on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// Clients' HTTP API, in HTTP/1.1 or HTTP/2.
    Http,
    /// The admin API, as [`Self::Http`].
    Admin,
    /// Clients and workers, in HTTP/2.
    Grpc,
}

/// A port that is taken, and what is done with what comes to it.
#[derive(Debug)]
pub(crate) struct Listener {
    api: Api,
    socket: TcpListener,
    acceptor: Acceptor,
    limits: ConnectionLimits,
}

/// What all connections of a listener share.
#[derive(Debug)]
struct Shared {
    api: Api,
    acceptor: Acceptor,
    limits: ConnectionLimits,
    builder: Builder<TokioExecutor>,
    router: Router,
    seats: Seats,
    stop: CancellationToken,
}

/// How a connection ended that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// There was no place for it.
    Full,
    /// Its place was given to another.
    Evicted,
    /// It took too long.
    Overdue(Overdue),
}

// === impl Listener ===

impl Listener {
    /// Takes a port; 0 takes a free one. Says which.
    ///
    /// # Errors
    /// The system's, for instance because the port is in use.
    pub(crate) async fn bind(
        api: Api,
        address: SocketAddr,
        security: &Security,
        limits: ConnectionLimits,
    ) -> io::Result<(Self, SocketAddr)> {
        let socket = TcpListener::bind(address).await?;
        let bound = socket.local_addr()?;
        Ok((Self { api, socket, acceptor: api.acceptor(security), limits }, bound))
    }

    /// Serves until `stop` is cancelled and all answers are out.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let Self { api, socket, acceptor, limits } = self;
        let shared = Arc::new(Shared {
            api,
            builder: builder(api, &limits),
            seats: Seats::new(limits.connections_max),
            acceptor,
            limits,
            router,
            stop,
        });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = socket.accept() => match accepted {
                    Ok((stream, address)) => match shared.seats.take() {
                        Some(seat) => {
                            connections.spawn(Arc::clone(&shared).run(stream, address, seat));
                        }
                        None => shared.cut(Cut::Full),
                    },
                    Err(error) => {
                        tracing::warn!(api = api.label(), %error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
            gauge!(names::CONNECTIONS, names::API => api.label()).set(connections.len() as f64);
        }
        drop(socket);
        while connections.join_next().await.is_some() {}
        gauge!(names::CONNECTIONS, names::API => api.label()).set(0.0);
    }
}

fn builder(api: Api, limits: &ConnectionLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if api == Api::Grpc {
        builder = builder.http2_only();
    }
    let header_bytes_max = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
    builder
        .http1()
        .timer(TokioTimer::new())
        // Its own clock would also run between requests; ours tells the two apart.
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header_bytes_max)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

// === impl Shared ===

impl Shared {
    fn cut(&self, cut: Cut) {
        tracing::debug!(api = self.api.label(), ?cut, "a connection was cut");
        let reason = match cut {
            Cut::Full => names::CUT_FULL,
            Cut::Evicted => names::CUT_EVICTED,
            Cut::Overdue(Overdue::Greeting) => names::CUT_GREETING,
            Cut::Overdue(Overdue::Header) => names::CUT_HEADER,
            Cut::Overdue(Overdue::Writing) => names::CUT_WRITE,
            // As it should be.
            Cut::Overdue(Overdue::Idle) => return,
        };
        counter!(names::CONNECTIONS_CUT_TOTAL, names::API => self.api.label(), names::REASON => reason)
            .increment(1);
    }

    /// Shakes hands; `None` if nothing comes of it.
    async fn meet(&self, stream: TcpStream, address: SocketAddr, seat: &Seat) -> Option<Stream> {
        let accepted = tokio::select! {
            accepted = self.acceptor.accept(stream) => accepted,
            () = seat.evicted() => {
                self.cut(Cut::Evicted);
                return None;
            }
            () = self.stop.cancelled() => return None,
        };
        if let Err(error) = &accepted {
            tracing::debug!(api = self.api.label(), %address, %error, "no handshake");
        }
        accepted.ok()
    }

    /// One connection, from the handshake to its end.
    async fn run(self: Arc<Self>, stream: TcpStream, address: SocketAddr, seat: Arc<Seat>) {
        let Some(stream) = self.meet(stream, address, &seat).await else { return };
        let peer = stream.peer();
        let activity = Arc::new(Activity::new(seat, Instant::now()));
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(address));
            request.extensions_mut().insert(peer);
            let busy = activity.begin();
            let answer = router.call(request.map(Body::new));
            async move {
                let Ok(response) = answer.await;
                Ok::<Response<Counted>, Infallible>(response.map(|body| Counted::new(body, busy)))
            }
        });
        let connection = self.builder.serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        let mut looks = interval(self.limits.look_interval());
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_stopping, mut is_leaving) = (false, false);
        let cut = loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(api = self.api.label(), %address, error, "a connection failed");
                    }
                    return;
                }
                () = activity.evicted() => break Cut::Evicted,
                () = self.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = looks.tick() => match activity.overdue(&self.limits, Instant::now()) {
                    // The other side is told, and has until the next look to close.
                    Some(Overdue::Idle) if !is_leaving => {
                        is_leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Some(overdue) => break Cut::Overdue(overdue),
                    None => {}
                },
            }
        };
        self.cut(cut);
    }
}

// === impl Api ===

impl Api {
    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Admin => "admin",
            Self::Grpc => "gRPC",
        }
    }

    /// How connections to it are protected, and from whom certificates are asked.
    fn acceptor(self, security: &Security) -> Acceptor {
        security.acceptor(match self {
            Self::Http | Self::Admin => Service::Http,
            Self::Grpc => Service::Clients,
        })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Admin => "admin",
            Self::Grpc => "grpc",
        }
    }
}

// === impl ConnectionLimits ===

impl ConnectionLimits {
    fn look_interval(&self) -> Duration {
        let shortest = self.header_read_timeout.min(self.keep_alive_timeout);
        (shortest.min(self.write_timeout) / 4).clamp(LOOK_MIN, LOOK_MAX)
    }
}
