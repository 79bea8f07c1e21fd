//! Integration tests of the worker, one binary.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod collective;
mod mesh;
mod attacks;
mod cluster;
mod service;
mod lifecycle;
mod model;
