//! What ends a process: a signal, or the end of the process that started it.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Interrupt (Ctrl-C) and termination.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes over both signals; from here on they no longer kill the process.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// A token that the first signal cancels; a second one ends the wait for whatever still runs.
    pub(crate) fn into_token(mut self) -> CancellationToken {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        tokio::spawn(async move {
            self.next().await;
            cancelled.cancel();
        });
        token
    }
}

/// Waits until standard input ends. `up` holds the other end of its workers' standard input, so this is how a
/// worker learns of its death, even by SIGKILL.
pub(crate) async fn stdin_closed() {
    let (ended, end) = oneshot::channel::<()>();
    // A thread, because a blocking read cannot be cancelled. It ends with the process.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(ended);
    });
    // The sender is dropped, never used: an error is the news.
    let _ = end.await;
}
