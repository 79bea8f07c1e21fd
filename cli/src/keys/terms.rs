//! The flags that say what a key is good for.

use std::num::{NonZeroU32, NonZeroU64};

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use switchyard_coordinator::auth::{Change, KeyChange, KeyLimits, Terms};

use crate::config::Invalid;

/// Takes a limit away.
const NONE: &str = "none";
/// Suffixes of counts.
const UNITS: [(char, u64); 3] = [('k', 1_000), ('M', 1_000_000), ('G', 1_000_000_000)];

/// What a new key is good for.
#[derive(Debug, clap::Args)]
pub(super) struct NewArgs {
    /// What the key is for; shown by `keys list`.
    #[arg(long, default_value = "")]
    name: String,
    /// From now on, such as 30d, 12h or 1y [default: for ever].
    #[arg(long, value_name = "SPAN")]
    expires_in: Option<Span>,
    /// A model that the key may ask for. May be repeated [default: all].
    #[arg(long = "model", value_name = "ID")]
    models: Vec<String>,
    /// Requests per minute, such as 60.
    #[arg(long, value_name = "N", value_parser = small)]
    requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers per minute, such as 200k.
    #[arg(long, value_name = "N", value_parser = small)]
    tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    #[arg(long, value_name = "N", value_parser = small)]
    concurrent: Option<NonZeroU32>,
    /// Tokens of prompts and answers per calendar month in UTC, such as 50M.
    #[arg(long, value_name = "N", value_parser = large)]
    monthly_tokens: Option<NonZeroU64>,
}

/// What is to change of a key. `none` takes a limit away.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct ChangeArgs {
    /// Another name.
    #[arg(long)]
    name: Option<String>,
    /// From now on, such as 30d, or none.
    #[arg(long, value_name = "SPAN", value_parser = or_none::<Span>)]
    expires_in: Option<Change<Span>>,
    /// The models that the key may ask for from now on. May be repeated.
    #[arg(long = "model", value_name = "ID", conflicts_with = "all_models")]
    models: Vec<String>,
    /// Let the key ask for all models.
    #[arg(long)]
    all_models: bool,
    /// Requests per minute, or none.
    #[arg(long, value_name = "N", value_parser = small_or_none)]
    requests_per_minute: Option<Change<NonZeroU32>>,
    /// Tokens of prompts and answers per minute, or none.
    #[arg(long, value_name = "N", value_parser = small_or_none)]
    tokens_per_minute: Option<Change<NonZeroU32>>,
    /// Requests at the same time, or none.
    #[arg(long, value_name = "N", value_parser = small_or_none)]
    concurrent: Option<Change<NonZeroU32>>,
    /// Tokens of prompts and answers per calendar month in UTC, or none.
    #[arg(long, value_name = "N", value_parser = large_or_none)]
    monthly_tokens: Option<Change<NonZeroU64>>,
}

// === impl NewArgs ===

impl NewArgs {
    pub(super) fn resolve(&self, now: i64) -> Result<Terms, Invalid> {
        Ok(Terms {
            name: self.name.clone(),
            expires_at: self.expires_in.map(|span| end_of(span, now)).transpose()?,
            models: self.models.clone(),
            limits: KeyLimits {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                concurrent_requests: self.concurrent,
                monthly_tokens: self.monthly_tokens,
            },
        })
    }
}

// === impl ChangeArgs ===

impl ChangeArgs {
    pub(super) fn resolve(self, now: i64) -> Result<KeyChange, Invalid> {
        let is_named = self.all_models || !self.models.is_empty();
        Ok(KeyChange {
            name: self.name,
            active: None,
            models: is_named.then_some(self.models),
            expires_at: match self.expires_in.unwrap_or_default() {
                Change::Keep => Change::Keep,
                Change::Clear => Change::Clear,
                Change::Set(span) => Change::Set(end_of(span, now)?),
            },
            requests_per_minute: self.requests_per_minute.unwrap_or_default(),
            tokens_per_minute: self.tokens_per_minute.unwrap_or_default(),
            concurrent_requests: self.concurrent.unwrap_or_default(),
            monthly_tokens: self.monthly_tokens.unwrap_or_default(),
        })
    }
}

/// When a span from now is over, in Unix seconds.
pub(super) fn end_of(span: Span, now: i64) -> Result<i64, Invalid> {
    let from = Timestamp::from_second(now).map(|now| now.to_zoned(TimeZone::UTC));
    let end = from.and_then(|from| from.checked_add(span));
    match end.map(|end| end.timestamp().as_second()) {
        Ok(end) if end > now => Ok(end),
        Ok(_) => Err(Invalid::one(format!("--expires-in {span:#}: must lie in the future"))),
        Err(error) => Err(Invalid::one(format!("--expires-in {span:#}: {error}"))),
    }
}

/// A count of at least one, with or without a suffix: 1500, 200k, 50M, 2G.
pub(super) fn large(typed: &str) -> Result<NonZeroU64, String> {
    let unit =
        UNITS.into_iter().find_map(|(suffix, unit)| Some((typed.strip_suffix(suffix)?, unit)));
    let (digits, unit) = unit.unwrap_or((typed, 1));
    let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
    let count = count.filter(|count| i64::try_from(*count).is_ok()).and_then(NonZeroU64::new);
    count.ok_or_else(|| "must be a whole number from 1 on, such as 1500, 200k or 50M".to_owned())
}

fn small(typed: &str) -> Result<NonZeroU32, String> {
    let too_much = |_| format!("must be at most {}", u32::MAX);
    large(typed)?.try_into().map_err(too_much)
}

fn change<T>(
    typed: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Change<T>, String> {
    if typed == NONE { Ok(Change::Clear) } else { Ok(Change::Set(parse(typed)?)) }
}

fn small_or_none(typed: &str) -> Result<Change<NonZeroU32>, String> {
    change(typed, small)
}

fn large_or_none(typed: &str) -> Result<Change<NonZeroU64>, String> {
    change(typed, large)
}

fn or_none<T: std::str::FromStr<Err: std::fmt::Display>>(typed: &str) -> Result<Change<T>, String> {
    change(typed, |typed| typed.parse().map_err(|error: T::Err| error.to_string()))
}

/// A count as people write it: exact, with a suffix where one fits.
pub(super) fn count(count: u64) -> String {
    let fits = |(_, unit): &(char, u64)| count >= *unit && count.is_multiple_of(*unit);
    match UNITS.into_iter().rev().find(fits) {
        Some((suffix, unit)) => format!("{}{suffix}", count / unit),
        None => count.to_string(),
    }
}
