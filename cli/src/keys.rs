//! `switchyard keys`: create, list and revoke API keys in a data folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use switchyard_coordinator::auth::{KeyRecord, KeyStore};
use switchyard_coordinator::options::default_database_url;

use crate::data_dir::DataDir;
use crate::terminal;

/// Arguments of `switchyard keys`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Data folder of the coordinator [default: the user's data folder].
    #[arg(long, global = true, env = "SWITCHYARD_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and show it, this once.
    Create {
        /// What the key is for; shown by `keys list`.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Show all keys: number, first characters, name and dates, never the key.
    List,
    /// Make a key invalid.
    Revoke {
        /// Number of the key, as `keys list` shows it.
        id: i64,
    },
}

/// Runs the command.
///
/// # Errors
/// The key database cannot be used, or there is no such key.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let data = DataDir::new(args.data.as_deref());
    data.create()?;
    let store = KeyStore::open(&default_database_url(data.path())).await?;
    match args.action {
        Action::Create { name } => {
            let (record, key) = store.create(&name).await.context("no key was made")?;
            terminal::line(key.expose());
            terminal::note(format_args!(
                "key {} is stored as a hash only: it cannot be shown again",
                record.id
            ));
        }
        Action::List => {
            let records = store.list().await?;
            terminal::line(table(&records));
        }
        Action::Revoke { id } => {
            let record = store.revoke(id).await?;
            terminal::note(format_args!("key {} ({}…) is revoked", record.id, record.prefix));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(records: &[KeyRecord]) -> String {
    let mut text = format!("{:>5}  {:<14} {:<17} {:<17} NAME", "ID", "KEY", "CREATED", "REVOKED");
    for record in records {
        let revoked = record.revoked_at.map_or_else(|| "-".to_owned(), utc_minute);
        let key = format!("{}…", record.prefix);
        let created = utc_minute(record.created_at);
        text.push_str(&format!(
            "\n{:>5}  {key:<14} {created:<17} {revoked:<17} {}",
            record.id, record.name
        ));
    }
    text
}

/// `2026-11-22 15:04` in UTC, from Unix seconds.
fn utc_minute(seconds: i64) -> String {
    let (year, month, day) = civil_date(seconds.div_euclid(86_400));
    let minute = seconds.rem_euclid(86_400) / 60;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minute / 60, minute % 60)
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests;
