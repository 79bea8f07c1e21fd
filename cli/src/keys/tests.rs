use super::utc_minute;

#[test]
fn dates_are_utc() {
    let check = |seconds, expect: &str| assert_eq!(utc_minute(seconds), expect);
    check(0, "1970-01-01 00:00");
    check(951_782_399, "2000-02-28 23:59");
    check(951_782_400, "2000-02-29 00:00");
    check(1_735_689_599, "2024-12-31 23:59");
    check(1_795_359_840, "2026-11-22 15:04");
}
