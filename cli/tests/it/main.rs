//! Real processes: the built program, the demo model, sockets and signals.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]

mod harness;
mod life;
mod logs;
mod by_hand;
mod bad_start;
mod refusals;
mod streams;
mod chat;
mod status;
mod keys;
mod batches;
mod tls;
