//! The models, and the server's own state.

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::{JSON, Operation, TEXT, Tag, of};
use crate::http::{health, models};

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        Operation::new(Method::GET, "/v1/models", "listModels", Tag::Models)
            .summary("List models")
            .description("All models, ready or not, each with a schema of its parameters.")
            .key()
            .answer(200, "The models.", vec![of::<models::ModelList>(JSON)]),
        Operation::new(Method::GET, "/v1/models/{id}", "retrieveModel", Tag::Models)
            .summary("Retrieve model")
            .description("One model. Its id may contain slashes.")
            .key()
            .path_parameter("id", "Id of the model.")
            .answer(200, "The model.", vec![of::<models::ModelObject>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        Operation::new(Method::GET, "/v1/models/{id}/tokenizer", "retrieveTokenizer", Tag::Models)
            .summary("Retrieve tokenizer")
            .description("A model's `tokenizer.json`, as its directory has it.")
            .key()
            .path_parameter("id", "Id of the model.")
            .answer(200, "A tokenizer of Hugging Face's library.", vec![of::<Value>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        Operation::new(Method::GET, "/health/live", "live", Tag::Operation)
            .summary("Liveness")
            .description("Whether the process answers.")
            .answer(200, "It does.", vec![of::<String>(TEXT)]),
        Operation::new(Method::GET, "/health/ready", "ready", Tag::Operation)
            .summary("Readiness")
            .description("Whether a request sent now will be served, and each model's state.")
            .answer(200, "At least one model is ready.", vec![of::<health::Ready>(JSON)])
            .answer(
                503,
                "No model is ready, or the server stops.",
                vec![of::<health::Ready>(JSON)],
            ),
        Operation::new(Method::GET, "/health/decode", "decode", Tag::Operation)
            .summary("Progress")
            .description("Whether every model that has work brings tokens.")
            .answer(200, "Tokens come, or there is no work.", vec![of::<health::Decode>(JSON)])
            .answer(
                503,
                "A model has work, and no token came for too long.",
                vec![of::<health::Decode>(JSON)],
            ),
        Operation::new(Method::GET, "/metrics", "metrics", Tag::Operation)
            .summary("Metrics")
            .description("Counters, gauges and histograms in the Prometheus text format.")
            .answer(200, "The metrics.", vec![of::<String>(TEXT)]),
        Operation::new(Method::GET, "/openapi.json", "openapi", Tag::Operation)
            .summary("API document")
            .description("This document.")
            .answer(200, "An OpenAPI 3.1 document.", vec![of::<Value>(JSON)]),
    ]
}
