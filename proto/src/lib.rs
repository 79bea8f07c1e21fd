//! The wire format between Switchyard's processes and towards gRPC clients.
//!
//! Everything here is generated from the `.proto` files of this crate; there is no other wire format for
//! control messages. Activations do not travel in these messages: they have their own frames in the
//! worker's `collective`.
//!
//! - [`cluster`]: how a worker joins a coordinator.
//! - [`worker`]: how a coordinator drives a worker.
//! - [`inference`]: how a client asks for a completion.

/// `switchyard.cluster.v1`.
pub mod cluster {
    tonic::include_proto!("switchyard.cluster.v1");
}

/// `switchyard.worker.v1`.
pub mod worker {
    tonic::include_proto!("switchyard.worker.v1");
}

/// `switchyard.v1`, the client API.
pub mod inference {
    tonic::include_proto!("switchyard.v1");
}

/// The encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
