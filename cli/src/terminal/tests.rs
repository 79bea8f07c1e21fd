use anyhow::Context as _;

use super::chain;

#[test]
fn causes_follow_what_failed() {
    let error = Err::<(), _>(std::io::Error::other("disk on fire"))
        .context("reading config.json")
        .context("model demo")
        .unwrap_err();
    assert_eq!(chain(&error), "model demo: reading config.json: disk on fire");
}

#[test]
fn a_repeated_cause_is_said_once() {
    let error = Err::<(), _>(std::io::Error::other("disk on fire"))
        .context("reading config.json: disk on fire")
        .unwrap_err();
    assert_eq!(chain(&error), "reading config.json: disk on fire");
}

#[test]
fn a_cause_in_other_words_is_left_out() {
    let error = Err::<(), _>(std::io::Error::other("database said: (13) the disk is full"))
        .context("cannot use keys.db: the disk is full")
        .unwrap_err();
    assert_eq!(chain(&error), "cannot use keys.db: the disk is full");
}
