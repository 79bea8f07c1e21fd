//! Measures a cluster as its clients and its machine see it, and compares the figures with their goals.
//!
//! Starts `switchyard up` with the demo model (or measures the one at `--url`), then: time to ready, time to first
//! token, decode speed of one stream and of many, prefill speed, memory, and processor use when idle.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

mod client;
mod measure;
mod process;
mod report;

use client::Client;
use process::Cluster;
use report::Report;

/// Measures a cluster with the demo model.
#[derive(Debug, Parser)]
struct Args {
    /// The program to start [default: `switchyard` beside this one].
    #[arg(long, value_name = "FILE")]
    switchyard: Option<PathBuf>,
    /// Model to serve [default: the demo model].
    #[arg(long, value_name = "[ID=]DIR")]
    model: Option<String>,
    /// Worker processes.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Streams at once in the test of total speed.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Tokens that each stream generates.
    #[arg(long, default_value_t = 256)]
    tokens: u32,
    /// Tokens, about, of the long prompt.
    #[arg(long, default_value_t = 3000)]
    prompt: usize,
    /// Seconds during which idle processor use is counted.
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    // Nothing else of this process can have chosen another.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut cluster = Cluster::start(&args).await?;
    let report = measure_all(&args, &mut cluster).await;
    cluster.stop().await?;
    let report = report?;
    writeln!(std::io::stdout(), "{report}")?;
    if let Some(path) = &args.csv {
        std::fs::write(path, report.csv())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure_all(args: &Args, cluster: &mut Cluster) -> anyhow::Result<Report> {
    let client = Client::new(&cluster.url, &cluster.key, &cluster.model)?;
    let mut report = Report::default();
    report.at_most("up to ready", "s", cluster.ready_after.as_secs_f64(), 3.0);
    let idle = Duration::from_secs(args.idle_seconds);
    report.at_most("idle CPU, all processes", "%", cluster.idle_cpu_percent(idle).await?, 1.0);
    measure::warm_up(&client).await?;
    report.at_most("first token, median", "ms", measure::first_token_ms(&client).await?, 100.0);
    let one = measure::decode_tokens_per_second(&client, 1, args.tokens).await?;
    report.at_least("decode, 1 stream", "tok/s", one, 150.0);
    let many = measure::decode_tokens_per_second(&client, args.streams, args.tokens).await?;
    let name = format!("decode, {} streams in total", args.streams);
    report.at_least(&name, "tok/s", many, 600.0);
    let prefill = measure::prefill_tokens_per_second(&client, args.prompt).await?;
    report.at_least("prefill", "tok/s", prefill, 1500.0);
    report.at_most("coordinator, resident", "MB", cluster.coordinator_megabytes()?, 60.0);
    report.at_most("largest worker, resident", "MB", cluster.worker_megabytes()?, 150.0);
    Ok(report)
}
