//! The `switchyard` program: laptop demo, coordinator, worker and client in one binary.
//!
//! In the order in which a person meets them:
//! - [`up`]: coordinator and workers on this machine, in one terminal.
//! - [`chat`]: a streaming chat in the terminal.
//! - [`status`]: how a running cluster is, live in the terminal or as JSON.
//! - [`keys`]: API keys, their limits, and what was used.
//! - [`coordinator`], [`worker`]: the two kinds of process of a cluster, started one by one.
//! - [`verify`]: compares a model's logits with a golden file.
//! - `bench`: measures steps and kernels.
//! - `compile_kernels`: fills the folder of GPU kernels without a GPU.
//!
//! Configuration is read here and nowhere else: flags, environment and file become checked options of the
//! libraries. Only this crate prints, and only this crate uses `anyhow`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use switchyard_coordinator::server;

mod up;
mod chat;
mod status;
mod keys;
mod coordinator;
mod worker;
mod verify;
mod bench;
#[cfg(feature = "cuda")]
mod compile_kernels;
mod batches;
mod election;
mod tls;
mod descriptors;
mod config;
mod models;
mod data_dir;
mod telemetry;
mod shutdown;
mod terminal;
mod table;

/// Exit status for a command line or configuration that cannot be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// Exit status of a coordinator that led and leads no longer: to be started again (`EX_TEMPFAIL`).
const EXIT_TEMPORARY: u8 = 75;

/// Serves mixture-of-experts chat models from a cluster: one coordinator, many workers.
#[derive(Debug, Parser)]
#[command(name = "switchyard", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: telemetry::Args,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a coordinator and its workers on this machine, in this terminal.
    Up(up::Args),
    /// Chat with a running server.
    Chat(chat::Args),
    /// Show how a running cluster is: models, ranks, load, faults.
    Status(status::Args),
    /// Create, list, change and revoke API keys; sum up what they used.
    Keys(keys::Args),
    /// Run a coordinator: the API, the scheduler and the cluster's membership.
    Coordinator(Box<coordinator::Args>),
    /// Run a worker: one rank of one model's group.
    Worker(worker::Args),
    /// Compare a model's logits with those of a golden file.
    Verify(verify::Args),
    /// Measure a step of a model, or the kernels of a GPU.
    Bench(bench::Args),
    /// Compile the GPU kernels ahead of time, for a container image say. Needs no GPU.
    #[cfg(feature = "cuda")]
    CompileKernels(compile_kernels::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // A closed pipe is the only way this fails, and then nobody reads the message.
            let _ = error.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            terminal::error_line(&error);
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<config::Invalid>() {
        return ExitCode::from(EXIT_USAGE);
    }
    if matches!(error.downcast_ref(), Some(server::Error::LostLead(_))) {
        return ExitCode::from(EXIT_TEMPORARY);
    }
    ExitCode::FAILURE
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // Both TLS back ends of rustls could be linked; the choice is made once. It can only fail if made twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(dispatch(cli));
    // Threads that block on a terminal read must not keep the process alive.
    runtime.shutdown_background();
    code
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => up::run(args, &cli.log).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Keys(args) => keys::run(args, &cli.log).await,
        Command::Coordinator(args) => coordinator::run(*args, &cli.log).await,
        Command::Worker(args) => worker::run(args, &cli.log).await,
        Command::Verify(args) => tokio::task::block_in_place(|| verify::run(args)),
        Command::Bench(args) => tokio::task::block_in_place(|| bench::run(args)),
        #[cfg(feature = "cuda")]
        Command::CompileKernels(args) => {
            tokio::task::block_in_place(|| compile_kernels::run(&args))
        }
    }
}
