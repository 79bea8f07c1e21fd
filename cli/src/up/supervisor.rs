//! Keeps worker processes running: starts them, forwards what they write, restarts those that die.
//!
//! Each worker has a process group of its own, so that Ctrl-C in the terminal reaches `up` alone, and a pipe as
//! standard input that it watches: when `up` is gone, however it went, the pipe ends and the worker exits.

use std::fmt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First pause before a restart; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Restarts in a row after which a worker is given up.
const RESTARTS_MAX: u32 = 6;
/// A worker that lived this long was healthy: its next death counts as the first.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// How long a worker may take to exit by itself before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that may wait for the terminal.
const EVENTS_MAX: usize = 256;

/// How to start one worker.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// What messages call it.
    pub(super) name: WorkerName,
    /// This program.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) args: Vec<String>,
}

/// A worker of `up`: its model and its number among the model's workers. Not its rank, which may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkerName {
    /// The model's id.
    pub(super) model: String,
    /// Counts from 1.
    pub(super) number: usize,
}

/// What happened to a worker.
#[derive(Debug)]
pub(super) enum Event {
    /// It wrote a line.
    Line(WorkerName, String),
    /// It ended without being asked to.
    Exited(Exit),
}

/// The end of a worker process.
#[derive(Debug)]
pub(super) struct Exit {
    /// Which one.
    pub(super) name: WorkerName,
    /// How it ended, or why it could not be started.
    pub(super) cause: String,
    /// When it is started again; `None` when it has been given up.
    pub(super) restart_in: Option<Duration>,
}

/// The workers of one `up`. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Supervisor {
    tasks: JoinSet<()>,
    orders: Orders,
    events: mpsc::Receiver<Event>,
}

/// What the workers are told, all of them at once.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// Nobody who ends is started again.
    retire: CancellationToken,
    /// All end.
    stop: CancellationToken,
}

/// Pauses between restarts.
#[derive(Debug, Default)]
struct Backoff {
    in_a_row: u32,
}

// === impl Supervisor ===

impl Supervisor {
    /// Starts all workers.
    pub(super) fn start(specs: Vec<Spec>) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let orders = Orders::default();
        let mut tasks = JoinSet::new();
        for spec in specs {
            tasks.spawn(supervise(spec, sender.clone(), orders.clone()));
        }
        Self { tasks, orders, events }
    }

    /// The next event; `None` once every worker has been given up.
    pub(super) async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// From now on, workers that end are neither started again nor spoken of.
    pub(super) fn retire(&self) {
        self.orders.retire.cancel();
    }

    /// Ends all workers; returns when none is left. What they write meanwhile is passed to `on_line`.
    pub(super) async fn stop(mut self, mut on_line: impl FnMut(&WorkerName, &str)) {
        self.retire();
        self.orders.stop.cancel();
        // The channel ends when the last task has dropped its sender.
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Line(name, text) => on_line(&name, &text),
                Event::Exited(_) => {}
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Runs one worker until it is given up, retired or stopped.
async fn supervise(spec: Spec, events: mpsc::Sender<Event>, orders: Orders) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let cause = match spawn(&spec) {
            Ok(mut child) => match run_once(&spec, &mut child, &events, &orders.stop).await {
                Some(cause) => cause,
                None => return,
            },
            Err(error) => format!("cannot start {}: {error}", spec.program.display()),
        };
        if orders.retire.is_cancelled() {
            return;
        }
        let restart_in = backoff.next(started.elapsed());
        let exit = Exit { name: spec.name.clone(), cause, restart_in };
        if events.send(Event::Exited(exit)).await.is_err() {
            return;
        }
        let Some(pause) = restart_in else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = orders.retire.cancelled() => return,
        }
    }
}

fn spawn(spec: &Spec) -> std::io::Result<Child> {
    Command::new(&spec.program)
        .args(&spec.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Forwards a worker's lines until it ends. `None` when it ended because it was asked to.
async fn run_once(
    spec: &Spec,
    child: &mut Child,
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) -> Option<String> {
    let mut lines = child.stderr.take().map(|stderr| BufReader::new(stderr).lines());
    let mut reason = None;
    let stopping = tokio::select! {
        () = forward(spec, &mut lines, events, &mut reason) => false,
        () = stop.cancelled() => true,
    };
    if stopping {
        // The end of its input is the order to leave.
        drop(child.stdin.take());
    }
    let ended = tokio::time::timeout(STOP_TIMEOUT, async {
        if stopping {
            forward(spec, &mut lines, events, &mut reason).await;
        }
        child.wait().await
    });
    let Ok(Ok(status)) = ended.await else {
        // It closed its output or was told to leave, but lives on.
        let _ = child.kill().await;
        return (!stopping).then(|| "hung and was killed".to_owned());
    };
    (!stopping).then(|| describe(status, reason))
}

/// Sends each line as an event, until the worker's output ends. Keeps the last error message in `reason`.
async fn forward(
    spec: &Spec,
    lines: &mut Option<Lines<BufReader<ChildStderr>>>,
    events: &mpsc::Sender<Event>,
    reason: &mut Option<String>,
) {
    let Some(lines) = lines else { return };
    while let Ok(Some(line)) = lines.next_line().await {
        match line.strip_prefix("error: ") {
            // Reported with the exit that follows, not twice.
            Some(message) => *reason = Some(message.to_owned()),
            None => {
                if events.send(Event::Line(spec.name.clone(), line)).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn describe(status: ExitStatus, reason: Option<String>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (reason, status.signal()) {
        (Some(reason), _) => reason,
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => format!("ended with {status}"),
    }
}

// === impl Backoff ===

impl Backoff {
    /// The pause before the next start of a worker that lived for `lived`.
    fn next(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= HEALTHY_AFTER {
            self.in_a_row = 0;
        }
        if self.in_a_row >= RESTARTS_MAX {
            return None;
        }
        let pause = BACKOFF_FIRST * 2u32.pow(self.in_a_row);
        self.in_a_row += 1;
        Some(pause)
    }
}

// === impl WorkerName ===

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} of {}", self.number, self.model)
    }
}

#[cfg(test)]
mod tests;
