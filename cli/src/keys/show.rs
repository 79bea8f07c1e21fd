//! Keys and usage as tables.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use switchyard_coordinator::auth::KeyRecord;
use switchyard_coordinator::auth::ledger::Tokens;
use switchyard_coordinator::auth::report::{Group, GroupBy, Sum};

use super::terms::count;
use crate::table::{Align, NONE, Table};

/// A table of keys; what no key has is no column.
pub(super) fn keys(records: &[KeyRecord], now: i64) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("KEY", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("CREATED", Align::Left),
        ("EXPIRES (UTC)", Align::Left),
        ("REQ/MIN", Align::Right),
        ("TOK/MIN", Align::Right),
        ("AT ONCE", Align::Right),
        ("TOK/MONTH", Align::Right),
        ("MODELS", Align::Left),
    ]);
    for record in records {
        let terms = &record.terms;
        let small = |limit: Option<std::num::NonZeroU32>| {
            limit.map_or_else(|| NONE.to_owned(), |limit| count(limit.get().into()))
        };
        table.row(vec![
            record.id.to_string(),
            format!("{}…", record.prefix),
            or_none(terms.name.clone()),
            record.state(now).to_string(),
            utc(record.created_at, "%Y-%m-%d"),
            terms.expires_at.map_or_else(|| NONE.to_owned(), |at| utc(at, "%Y-%m-%d %H:%M")),
            small(terms.limits.requests_per_minute),
            small(terms.limits.tokens_per_minute),
            small(terms.limits.concurrent_requests),
            terms.limits.monthly_tokens.map_or_else(|| NONE.to_owned(), |limit| count(limit.get())),
            or_none(terms.models.join(",")),
        ]);
    }
    table.render()
}

/// A table of sums, and the sum of these.
pub(super) fn usage(sums: &[Sum], group_by: GroupBy) -> String {
    let group = match group_by {
        GroupBy::Day => "DAY",
        GroupBy::Key => "KEY",
        GroupBy::Model => "MODEL",
    };
    let mut table = Table::new(&[
        (group, Align::Left),
        ("REQUESTS", Align::Right),
        ("PROMPT", Align::Right),
        ("CACHED", Align::Right),
        ("COMPLETION", Align::Right),
        ("REASONING", Align::Right),
        ("TOTAL", Align::Right),
    ]);
    let row = |group: String, requests: u64, tokens: &Tokens| {
        let Tokens { prompt, cached, completion, reasoning } = *tokens;
        let counts = [requests, prompt, cached, completion, reasoning, tokens.total()];
        [group].into_iter().chain(counts.map(grouped)).collect()
    };
    let (mut requests, mut total) = (0, Tokens::default());
    for sum in sums {
        let group = match &sum.group {
            Group::Day(day) => day.to_string(),
            Group::Key(id, name) if name.is_empty() => id.to_string(),
            Group::Key(id, name) => format!("{id} {name}"),
            Group::Model(model) => model.clone(),
        };
        table.row(row(group, sum.requests, &sum.tokens));
        requests += sum.requests;
        total.prompt += sum.tokens.prompt;
        total.cached += sum.tokens.cached;
        total.completion += sum.tokens.completion;
        total.reasoning += sum.tokens.reasoning;
    }
    if sums.len() > 1 {
        table.row(row("all".to_owned(), requests, &total));
    }
    table.render()
}

/// Unix seconds as a date in UTC.
pub(super) fn utc(seconds: i64, format: &str) -> String {
    match Timestamp::from_second(seconds) {
        Ok(at) => at.to_zoned(TimeZone::UTC).strftime(format).to_string(),
        // No clock shows that year, but a hand may have written it.
        Err(_) => seconds.to_string(),
    }
}

/// Digits in groups of three, so that large sums can be compared.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}
