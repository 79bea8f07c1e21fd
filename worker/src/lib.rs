//! One rank of a model group: it holds a shard of the experts, computes, and exchanges activations with its peers.
//!
//! In the order in which a step passes through:
//! - `service`: the gRPC server that the coordinator drives, and the registration with it.
//! - `rank`: the thread that owns the device; one step at a time.
//! - `model`: DeepSeek-V4, written once over `backend::Backend`.
//! - `experts`: the rank's own experts, and the tokens it computes for its peers.
//! - `collective`: `dispatch` and `combine` between the ranks of a group.
//! - `kv_cache`: windows, tails and pools of compressed entries.
//! - `weights`: the checkpoint, memory-mapped and checked.
//! - `backend`: what a device must be able to do.
//!
//! This crate never speaks HTTP and knows nothing of requests, texts or tokenizers.
#![forbid(unsafe_code)]

pub mod step;
pub mod collective;
