//! The loop around the scheduler: collect events, schedule, send, commit.

pub mod request;
