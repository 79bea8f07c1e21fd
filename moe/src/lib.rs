//! The pure domain of Switchyard: what a model is, how its experts are placed, what they cost in memory.
//!
//! - [`ids`]: the identities that every crate speaks of.
//! - [`config`]: `config.json` of a checkpoint, parsed and checked once.
//! - [`placement`]: which rank holds which expert.
//! - [`capacity`]: bytes and blocks, so that scheduler, planner and worker agree to the byte.
//!
//! This crate never does I/O, never reads a clock or a random number, and knows nothing of tokio, gRPC, HTTP
//! or devices: every function here is a function of its arguments.
#![forbid(unsafe_code)]

pub mod ids;
pub mod config;
pub mod placement;
pub mod capacity;
