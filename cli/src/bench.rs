//! `switchyard bench`: measures what this machine can do, without a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

mod kernels;
mod step;
#[cfg(test)]
mod tests;

/// Arguments of `switchyard bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One rank's decode step with random weights of a model's true shapes.
    Step(step::Args),
    /// Each GPU kernel at the shapes of the published models.
    Kernels(kernels::Args),
}

/// Runs the command.
///
/// # Errors
/// When the device cannot be used, or a file cannot be read or written.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Step(args) => step::run(args)?,
        What::Kernels(args) => kernels::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_json(path: Option<&PathBuf>, value: &Value) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = format!("{value:#}\n");
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
