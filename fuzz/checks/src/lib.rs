//! What must hold for any bytes at all: functions that take input from a fuzzer and panic when it does not.
//!
//! - [`request`]: bodies of requests, up to the point where a prompt goes to the engine.
//! - [`schema`]: JSON Schemas, compiled and followed for some tokens.
//! - [`output`]: what a model writes, cut into tokens anywhere.
//!
//! The targets in `fuzz/targets` hand them what libFuzzer makes up. The tests here replay `fuzz/corpus`, so that what
//! was found once stays found.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a fuzzer is told that something does not hold"
)]

pub mod request;
pub mod schema;
pub mod output;
mod engine;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use switchyard_coordinator::chat::model::Model;
use switchyard_coordinator::options::ModelOptions;
use tokio::runtime::{Builder, Runtime};

/// Id of the model that inputs ask for.
pub const MODEL: &str = "demo-flash";

/// The folder of the demo model. Its weights are not read.
fn model_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-flash"))
}

fn model() -> Model {
    Model::load(&ModelOptions::new(MODEL, model_dir())).expect("the demo model's files are good")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime of one thread")
}
