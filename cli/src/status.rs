//! `switchyard status`: how a running cluster is, live in the terminal, once as text, or as JSON.
//!
//! - `client`: asks the coordinator.
//! - `view`: the answer as lines, the same in a terminal and in a pipe.
//! - `live`: the terminal.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::data_dir::DataDir;
use crate::terminal;

mod client;
mod view;
mod live;

use client::Client;
use view::{Palette, View};

#[cfg(test)]
mod tests;

/// Arguments of `switchyard status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server listens; the address of the admin API, where that has its own.
    #[arg(long, env = "SWITCHYARD_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Key of the admin API [default: that of `switchyard up`].
    #[arg(long, env = "SWITCHYARD_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    admin_key: Option<String>,
    /// File that holds the key of the admin API.
    #[arg(
        long,
        env = "SWITCHYARD_ADMIN_KEY_FILE",
        value_name = "FILE",
        conflicts_with = "admin_key"
    )]
    admin_key_file: Option<PathBuf>,
    /// Data folder of `switchyard up`, where its admin key lies [default: the user's data folder].
    #[arg(long, env = "SWITCHYARD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write one JSON object, as the admin API answers, and end: with status 0 if every model takes requests, else 1.
    #[arg(long)]
    json: bool,
}

/// Shows the status until the user has seen enough; once, where nobody looks.
///
/// # Errors
/// The server cannot be reached, or does not accept the key.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let key = match (args.admin_key, args.admin_key_file.as_deref()) {
        (Some(key), _) => Some(key),
        (None, Some(path)) => Some(read_key(path)?),
        (None, None) => DataDir::new(args.data.as_deref()).admin_key(),
    };
    let client = Client::new(&args.url, key)?;
    let status = client.fetch().await?;
    if args.json {
        terminal::line(serde_json::to_string(&status)?);
        return Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if !std::io::stdout().is_terminal() {
        let view = View::new(client.url(), &status, (Palette::Plain, usize::MAX));
        view.lines().iter().for_each(terminal::line);
        return Ok(ExitCode::SUCCESS);
    }
    live::run(&client, status, Palette::of_environment()).await?;
    Ok(ExitCode::SUCCESS)
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("--admin-key-file {}", path.display()))?;
    Ok(text.trim().to_owned())
}
