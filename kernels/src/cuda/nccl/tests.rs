use super::*;
use std::cell::Cell;

/// Waits with a clock that goes on by a millisecond at each look, and tells how long it took.
fn wait(
    is_aborted: impl Fn(u64) -> bool,
    is_done: impl Fn(u64) -> Result<bool, Error>,
) -> (Result<(), NcclError>, u64) {
    let clock = Cell::new(0);
    let now = || {
        clock.set(clock.get() + 1);
        Duration::from_millis(clock.get())
    };
    let aborted = || is_aborted(clock.get());
    let patience =
        Patience { now: &now, deadline: Duration::from_millis(20), is_aborted: &aborted };
    let waited = wait_until("a test", &patience, || is_done(clock.get()));
    (waited, clock.get())
}

#[test]
fn no_wait_outlives_its_deadline() {
    let (waited, at) = wait(|_| false, |_| Ok(false));
    assert!(matches!(waited, Err(NcclError::Deadline { .. })), "{waited:?}");
    assert_eq!(at, 21);
}

#[test]
fn what_is_done_in_time_is_no_error() {
    let (waited, at) = wait(|_| false, |now| Ok(now >= 7));
    assert!(waited.is_ok(), "{waited:?}");
    assert_eq!(at, 7);
}

#[test]
fn an_abort_ends_the_wait_at_once() {
    let (waited, at) = wait(|now| now >= 5, |_| Ok(false));
    assert!(matches!(waited, Err(NcclError::Aborted { .. })), "{waited:?}");
    assert_eq!(at, 5);
}

#[test]
fn an_error_of_the_device_is_passed_on() {
    let fault = Error::Driver { doing: "a test".to_owned(), detail: "it broke".to_owned() };
    let (waited, _) = wait(|_| true, |_| Err(fault.clone()));
    assert_eq!(waited.unwrap_err().to_string(), "the GPU failed at a test: it broke");
}

#[test]
fn a_missing_library_is_named() {
    // Where NCCL is installed, it makes an id.
    if let Err(error) = unique_id() {
        assert!(error.to_string().contains("libnccl.so"), "{error}");
    }
}
