//! `switchyard keys`: API keys, their limits, and what was used.

mod terms;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use jiff::civil::Date;
use switchyard_coordinator::auth::audit::{self, Action as AuditAction, Actor, Entry};
use switchyard_coordinator::auth::report::{GroupBy, Query};
use switchyard_coordinator::auth::{KeyChange, KeyId, KeyRecord, KeyStore};
use switchyard_coordinator::http::admin::{KeyObject, UsageObject};
use switchyard_coordinator::options::default_database_url;

use crate::config::Invalid;
use crate::data_dir::DataDir;
use crate::{telemetry, terminal};
use terms::{ChangeArgs, NewArgs};

/// Arguments of `switchyard keys`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data folder of the coordinator [default: the user's data folder].
    #[arg(long, global = true, env = "SWITCHYARD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Database of the coordinator, if it is not in the data folder.
    #[arg(
        long,
        global = true,
        env = "SWITCHYARD_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and show it, this once.
    Create(NewArgs),
    /// Show all keys: number, first characters, state and limits, never the key.
    List {
        /// As JSON, like the admin API.
        #[arg(long)]
        json: bool,
    },
    /// Change the name or the limits of a key. Running coordinators follow within a second.
    Update {
        /// Number of the key, as `keys list` shows it.
        id: i64,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make a disabled key valid again.
    Enable {
        /// Number of the key.
        id: i64,
    },
    /// Make a key invalid until it is enabled again.
    Disable {
        /// Number of the key.
        id: i64,
    },
    /// Make a key invalid for good.
    Revoke {
        /// Number of the key.
        id: i64,
    },
    /// Sum up what was used, in UTC days.
    Usage(UsageArgs),
}

#[derive(Debug, clap::Args)]
struct UsageArgs {
    /// What each sum is for.
    #[arg(long, default_value = "day", value_parser = ["day", "key", "model"], value_name = "day|key|model")]
    by: String,
    /// First day [default: the first of this month].
    #[arg(long, value_name = "YYYY-MM-DD")]
    from: Option<Date>,
    /// Last day [default: today].
    #[arg(long, value_name = "YYYY-MM-DD")]
    to: Option<Date>,
    /// Of this key only, by its number.
    #[arg(long, value_name = "ID")]
    key: Option<i64>,
    /// Of this model only.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// As JSON, like the admin API.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The key database cannot be used, or there is no such key.
pub(crate) async fn run(args: Args, log: &telemetry::Args) -> anyhow::Result<ExitCode> {
    // What is done here is recorded as what is done over the admin API.
    let _telemetry = telemetry::init(log, "switchyard-keys", "audit=info", telemetry::to_stderr())?;
    let url = match args.database_url {
        Some(url) => url,
        None => {
            let data = DataDir::new(args.data.as_deref());
            data.create()?;
            default_database_url(data.path())
        }
    };
    let store = KeyStore::open(&url).await?;
    match args.action {
        Action::Create(new) => create(&store, &new).await?,
        Action::List { json } => list(&store, json).await?,
        Action::Update { id, change } => {
            let change = change.resolve(store.clock().unix_seconds())?;
            let record = update(&store, id, &change).await?;
            terminal::line(show::keys(&[record], store.clock().unix_seconds()));
        }
        Action::Enable { id } => switch(&store, id, true).await?,
        Action::Disable { id } => switch(&store, id, false).await?,
        Action::Revoke { id } => {
            let id = KeyId::new(id);
            let revoked = store.revoke(id).await;
            audit(AuditAction::RevokeKey, Some(id), Vec::new(), revoked.is_ok());
            let record = revoked?;
            terminal::note(format_args!("key {} ({}…) is revoked", record.id, record.prefix));
        }
        Action::Usage(args) => usage(&store, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(store: &KeyStore, new: &NewArgs) -> anyhow::Result<()> {
    let terms = new.resolve(store.clock().unix_seconds())?;
    let created = store.create(&terms).await;
    let id = created.as_ref().ok().map(|(record, _)| record.id);
    audit(AuditAction::CreateKey, id, Vec::new(), created.is_ok());
    let (record, key) = created.context("no key was made")?;
    terminal::line(key.expose());
    terminal::note(format_args!(
        "key {} is stored as a hash only: it cannot be shown again",
        record.id
    ));
    Ok(())
}

async fn list(store: &KeyStore, json: bool) -> anyhow::Result<()> {
    let (records, now) = (store.list().await?, store.clock().unix_seconds());
    if json {
        let objects = records.into_iter().map(|record| KeyObject::new(record, now));
        terminal::line(serde_json::to_string_pretty(&objects.collect::<Vec<_>>())?);
    } else if records.is_empty() {
        terminal::note("there are no keys yet; `switchyard keys create` makes one");
    } else {
        terminal::line(show::keys(&records, now));
    }
    Ok(())
}

async fn update(store: &KeyStore, id: i64, change: &KeyChange) -> anyhow::Result<KeyRecord> {
    let id = KeyId::new(id);
    let updated = store.update(id, change).await;
    audit(AuditAction::UpdateKey, Some(id), change.fields(), updated.is_ok());
    Ok(updated?)
}

/// The line in the log.
fn audit(action: AuditAction, key: Option<KeyId>, fields: Vec<&'static str>, done: bool) {
    let actor = Actor::CommandLine(rustix::process::getuid().as_raw());
    let outcome = if done { audit::OK } else { audit::FAILED };
    Entry { actor, action, key, fields, outcome }.log();
}

async fn switch(store: &KeyStore, id: i64, active: bool) -> anyhow::Result<()> {
    let change = KeyChange { active: Some(active), ..KeyChange::default() };
    let record = update(store, id, &change).await?;
    let state = record.state(store.clock().unix_seconds());
    terminal::note(format_args!("key {} ({}…) is {state}", record.id, record.prefix));
    Ok(())
}

async fn usage(store: &KeyStore, args: UsageArgs) -> anyhow::Result<()> {
    let today = store.clock().today();
    let to = args.to.unwrap_or(today);
    let query = Query {
        from: args.from.unwrap_or_else(|| to.first_of_month()),
        to,
        key_id: args.key.map(KeyId::new),
        model: args.model,
        group_by: args.by.parse::<GroupBy>()?,
    };
    if query.from > query.to {
        let problem = format!("--from {} is later than --to {}", query.from, query.to);
        return Err(Invalid::one(problem).into());
    }
    let sums = store.usage(&query).await?;
    if args.json {
        let objects: Vec<_> = sums.iter().map(UsageObject::from).collect();
        terminal::line(serde_json::to_string_pretty(&objects)?);
    } else if sums.is_empty() {
        terminal::note(format_args!("nothing was used from {} to {}", query.from, query.to));
    } else {
        terminal::line(show::usage(&sums, query.group_by));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
