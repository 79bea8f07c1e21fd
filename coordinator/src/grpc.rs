//! The gRPC client API, `switchyard.v1.Inference`, with health and reflection.
//!
//! - [`inference`]: the methods.
//! - [`request`]: a message becomes the JSON form of the same request, so both APIs check the same way.
//! - [`response`]: chunks become messages.
//! - [`health`]: `grpc.health.v1` follows readiness.
//! - [`error`]: each error's status, in one place.

pub mod inference;
pub mod request;
pub mod response;
pub mod health;
pub mod error;

pub use error::Error;
pub use inference::Inference;

#[cfg(test)]
mod tests;
