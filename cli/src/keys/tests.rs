use clap::Parser;
use switchyard_coordinator::auth::{Change, KeyChange};

use super::show::{grouped, utc};
use super::terms::{count, end_of, large};
use super::{Action, Args};

/// 2026-11-22 15:04 in UTC.
const NOW: i64 = 1_795_359_840;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(words: &str) -> Result<Action, clap::Error> {
    let words = ["keys"].into_iter().chain(words.split_whitespace());
    Line::try_parse_from(words).map(|line| line.args.action)
}

fn change(words: &str) -> KeyChange {
    let action = parse(&format!("update 3 {words}")).unwrap();
    let Action::Update { id: 3, change } = action else { panic!("{action:?}") };
    change.resolve(NOW).unwrap()
}

#[test]
fn dates_are_utc() {
    let check = |seconds, expect: &str| assert_eq!(utc(seconds, "%Y-%m-%d %H:%M"), expect);
    check(0, "1970-01-01 00:00");
    check(951_782_400, "2000-02-29 00:00");
    check(1_735_689_599, "2024-12-31 23:59");
    check(NOW, "2026-11-22 15:04");
    check(i64::MAX, "9223372036854775807");
}

#[test]
fn a_span_ends_in_the_future() {
    for (span, seconds) in [("30d", 30 * 86_400), ("12h", 12 * 3600), ("1y", 365 * 86_400)] {
        assert_eq!(end_of(span.parse().unwrap(), NOW).unwrap(), NOW + seconds, "{span}");
    }
    for span in ["0s", "-1d", "9000y"] {
        let error = end_of(span.parse().unwrap(), NOW).unwrap_err().to_string();
        assert!(error.starts_with("--expires-in"), "{error}");
    }
}

#[test]
fn counts_have_suffixes_both_ways() {
    for (text, number) in
        [("1", 1), ("1500", 1500), ("200k", 200_000), ("50M", 50_000_000), ("2G", 2_000_000_000)]
    {
        assert_eq!(large(text).unwrap().get(), number);
        assert_eq!(count(number), text);
    }
    for wrong in ["0", "0k", "", "k", "-1", "1.5M", "10000000000G", "9223372036854775808"] {
        assert!(large(wrong).is_err(), "{wrong}");
    }
    assert_eq!(["1", "999", "1,000", "1,234,567"], [1, 999, 1000, 1_234_567].map(grouped));
}

#[test]
fn an_update_changes_what_is_typed_only() {
    let typed = change("--requests-per-minute 60 --monthly-tokens none --model a --model b");
    let expect = KeyChange {
        models: Some(vec!["a".into(), "b".into()]),
        requests_per_minute: Change::Set(60.try_into().unwrap()),
        monthly_tokens: Change::Clear,
        ..KeyChange::default()
    };
    assert_eq!(typed, expect);
    let all = change("--all-models --expires-in none");
    let expect =
        KeyChange { models: Some(Vec::new()), expires_at: Change::Clear, ..KeyChange::default() };
    assert_eq!(all, expect);
    for wrong in ["", "--all-models --model a", "--concurrent 0", "--tokens-per-minute 5G"] {
        assert!(parse(&format!("update 3 {wrong}")).is_err(), "{wrong}");
    }
}
