//! The cluster under test: its processes, and what the system says about them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::Args;

/// Longest time that a cluster may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Units of processor time in `/proc/PID/stat`, per second; fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running `switchyard up`.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Base URL of its API.
    pub(crate) url: String,
    /// Its key.
    pub(crate) key: String,
    /// The model it serves.
    pub(crate) model: String,
    /// From the start of the process until it said that it is ready.
    pub(crate) ready_after: Duration,
    up: Child,
    coordinator: u32,
    _data: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster on free ports, with a data folder of its own.
    pub(crate) async fn start(args: &Args) -> anyhow::Result<Self> {
        let program = match &args.switchyard {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("switchyard"),
        };
        let data = tempfile::tempdir()?;
        let mut command = Command::new(&program);
        command.args(["up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data"]);
        command.arg(data.path()).args(["--workers", &args.workers.to_string()]);
        command.args(args.model.iter().flat_map(|model| ["--model", model]));
        let started = Instant::now();
        let mut up = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let coordinator = up.id().context("the cluster has ended already")?;
        let shown = tokio::time::timeout(START_TIMEOUT, read_banner(&mut up))
            .await
            .context("the cluster did not come up in time")??;
        let ready_after = started.elapsed();
        let field = |name: &str| {
            let rows = shown.iter().map(|line| line.trim_matches(['│', ' ']));
            let value = rows.filter_map(|row| row.strip_prefix(name)).next();
            let word = value.and_then(|value| value.split_whitespace().next().map(str::to_owned));
            word.with_context(|| format!("`up` showed no {name}"))
        };
        Ok(Self {
            url: field("HTTP ")?,
            key: field("Key ")?,
            model: field("Model ")?,
            ready_after,
            up,
            coordinator,
            _data: data,
        })
    }

    /// Ends it as Ctrl-C would.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let killed = Command::new("kill")
            .args(["-INT", &self.coordinator.to_string()])
            .status()
            .await
            .context("cannot run kill")?;
        ensure!(killed.success(), "the cluster had ended by itself");
        let status = self.up.wait().await?;
        ensure!(status.success(), "the cluster ended with {status}");
        Ok(())
    }

    /// Processor time of all its processes while nothing is asked, in percent of one core.
    pub(crate) async fn idle_cpu_percent(&self, over: Duration) -> anyhow::Result<f64> {
        let before = self.cpu_seconds()?;
        tokio::time::sleep(over).await;
        Ok(100.0 * (self.cpu_seconds()? - before) / over.as_secs_f64())
    }

    /// Resident memory of the coordinator.
    pub(crate) fn coordinator_megabytes(&self) -> anyhow::Result<f64> {
        resident_megabytes(self.coordinator)
    }

    /// Resident memory of the largest worker.
    pub(crate) fn worker_megabytes(&self) -> anyhow::Result<f64> {
        let workers = children(self.coordinator)?;
        ensure!(!workers.is_empty(), "the cluster has no workers");
        let sizes: Vec<_> =
            workers.into_iter().map(resident_megabytes).collect::<Result<_, _>>()?;
        Ok(sizes.into_iter().fold(0.0, f64::max))
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut seconds = cpu_seconds(self.coordinator)?;
        for worker in children(self.coordinator)? {
            seconds += cpu_seconds(worker)?;
        }
        Ok(seconds)
    }
}

/// What `up` writes until it is ready.
async fn read_banner(up: &mut Child) -> anyhow::Result<Vec<String>> {
    let stdout = up.stdout.take().context("no output to read")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut shown = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let is_last = line.starts_with("Ctrl-C");
        shown.push(line);
        if is_last {
            // Keep the pipe open and empty, so that later lines of `up` go somewhere.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(shown);
        }
    }
    bail!("the cluster ended before it was ready:\n{}", shown.join("\n"))
}

fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{parent}/task"))? {
        let listed = std::fs::read_to_string(task?.path().join("children"))?;
        found.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("unknown form of /proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS_PER_SECOND)
}

fn resident_megabytes(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("no VmRSS in /proc/PID/status")? * 1024.0 / 1e6)
}
