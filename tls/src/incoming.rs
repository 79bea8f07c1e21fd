//! Accepted connections for a gRPC server that is served elsewhere.

use std::io;
use std::time::Duration;

use futures::stream::{self, Stream as Streams};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::{Acceptor, Stream};

/// Handshakes under way at once; further connections wait.
const HANDSHAKES_MAX: usize = 256;
/// Pause after the system refuses to accept a connection, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that came to `listener` and passed `acceptor`. Slow handshakes do not hold up others.
pub fn incoming(
    listener: TcpListener,
    acceptor: Acceptor,
) -> impl Streams<Item = io::Result<Stream>> + Send {
    let handshakes = JoinSet::new();
    stream::unfold(
        (listener, acceptor, handshakes),
        |(listener, acceptor, mut handshakes)| async move {
            loop {
                tokio::select! {
                    accepted = listener.accept(), if handshakes.len() < HANDSHAKES_MAX => match accepted {
                        Ok((stream, address)) => {
                            let acceptor = acceptor.clone();
                            handshakes.spawn(async move { (acceptor.accept(stream).await, address) });
                        }
                        Err(error) => {
                            warn!(%error, "cannot accept a connection");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    },
                    Some(shaken) = handshakes.join_next() => match shaken {
                        Ok((Ok(stream), _)) => {
                            return Some((Ok(stream), (listener, acceptor, handshakes)));
                        }
                        Ok((Err(error), address)) => debug!(%address, %error, "no handshake"),
                        Err(error) => warn!(%error, "a handshake ended unexpectedly"),
                    },
                }
            }
        },
    )
}
