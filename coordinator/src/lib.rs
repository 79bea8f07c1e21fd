//! The coordinator: takes chat requests, batches them, schedules their tokens over the workers, and streams answers.
//!
//! [`server::Coordinator::bind`] takes [`options::Options`] and starts everything. In the order in which a request
//! passes through:
//! - [`election`]: which of several coordinators does all this.
//! - `listener`: connections, bounded and protected.
//! - [`http`], [`grpc`]: the client APIs.
//! - [`auth`]: Bearer key to account.
//! - [`files`], [`batches`]: requests in files, answered when nobody waits.
//! - [`chat`]: request to prompt tokens, and tokens back to text.
//! - [`admission`]: a permit, or 429.
//! - [`scheduler`]: pure; one step's plan out of waiting and running sequences.
//! - [`engine`]: the loop around the scheduler, two steps in flight.
//! - [`cluster`]: workers, groups, epochs; a plan becomes one batch per rank.
//!
//! This crate never computes a model and never depends on `kernels` or on a device.
#![forbid(unsafe_code)]

pub mod options;
pub mod server;
pub mod election;
mod listener;
pub mod http;
pub mod grpc;
pub mod auth;
pub mod files;
pub mod batches;
pub mod chat;
pub mod admission;
pub mod scheduler;
pub mod engine;
pub mod cluster;
pub mod metric_definitions;
#[cfg(test)]
mod testing;
