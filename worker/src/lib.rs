//! One rank of a model group: it holds a shard of the experts, computes, and exchanges activations with its peers.
//!
//! In the order in which a step passes through:
//! - [`server`]: the worker process: ports, registration, service.
//! - `registration`: the lease that the coordinator holds on this worker.
//! - `service`: the gRPC server that the coordinator drives.
//! - `rank`: the thread that owns the device; one step at a time.
//! - `model`: DeepSeek-V4, written once over `backend::Backend`.
//! - `experts`: the rank's own experts, and the tokens it computes for its peers.
//! - `collective`: `dispatch` and `combine` between the ranks of a group.
//! - `kv_cache`: windows, tails and pools of compressed entries.
//! - `weights`: the checkpoint, memory-mapped and checked.
//! - `backend`: what a device must be able to do.
//! - `trace`: a step as spans in the traces of requests.
//! - `bench`: what a step costs, on a group of which only one rank exists.
//!
//! This crate never speaks HTTP and knows nothing of requests, texts or tokenizers.
#![forbid(unsafe_code)]

pub mod step;
pub mod collective;
pub mod kv_cache;
pub mod weights;
pub mod backend;
pub mod experts;
pub mod model;
mod sampler;
pub mod metric_definitions;
pub mod verify;
pub mod bench;
pub mod options;
pub mod server;
pub mod registration;
pub mod service;
pub mod rank;
pub mod trace;

pub use options::Options;
pub use server::Worker;

/// An error with all its causes, for a log line or a status message.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
