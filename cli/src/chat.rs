//! `switchyard chat`: a streaming chat in the terminal, over the same HTTP API as any other client.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::data_dir::DataDir;

mod conversation;
mod client;
mod sse;

use client::Client;
use conversation::Conversation;

/// Arguments of `switchyard chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server listens.
    #[arg(long, env = "SWITCHYARD_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Model to talk to [default: the first that the server serves].
    #[arg(long, env = "SWITCHYARD_MODEL", value_name = "ID")]
    model: Option<String>,
    /// API key [default: the development key of `switchyard up`].
    #[arg(long, env = "SWITCHYARD_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Instructions that stand before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Whether the model thinks before it answers [default: the model's].
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "on")]
    think: Option<Think>,
    /// Data folder of `switchyard up`, where its development key lies [default: the user's data folder].
    #[arg(long, env = "SWITCHYARD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Think {
    /// It does; its reasoning is shown dimmed.
    On,
    /// It does not.
    Off,
}

/// Chats until `/exit`, the end of the input, or Ctrl-C at the prompt.
///
/// # Errors
/// The server cannot be reached, refuses the key, or does not serve the model.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let key = args.api_key.or_else(|| DataDir::new(args.data.as_deref()).dev_key());
    let client = Client::new(&args.url, key)?;
    let model = client.choose_model(args.model.as_deref()).await?;
    let think = args.think.map(|think| think == Think::On);
    Conversation::new(client, model, args.system, think).run().await
}
