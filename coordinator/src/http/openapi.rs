//! `GET /openapi.json`: this API as an OpenAPI 3.1 document.
//!
//! It is made of types and tables that the server itself uses, and kept nowhere: request parameters come from
//! [`parameters`](crate::chat::parameters), answers from the types that are serialised, statuses from
//! [`statuses`]. A new route needs one entry in [`operations`]; a test fails until it has one.

pub mod operations;
pub mod statuses;
pub mod answers;

use axum::Json;
use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use operations::{Access, Operation, Tag};

#[cfg(test)]
mod tests;

/// Version of the OpenAPI specification.
const OPENAPI_VERSION: &str = "3.1.0";
/// Name of the security scheme of client keys.
const SECURITY_SCHEME: &str = "key";
/// Where schemas that are referred to lie in the document.
const SCHEMAS: &str = "/components/schemas";

/// Makes the schema of a type; see [`SchemaGenerator::subschema_for`].
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A request body of `POST /v1/chat/completions`, described by the table of its parameters.
#[derive(Debug)]
pub struct ChatCompletionRequest;

impl JsonSchema for ChatCompletionRequest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ChatCompletionRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::try_from(crate::chat::parameters::body_schema()).unwrap_or_default()
    }
}

/// The document.
pub async fn serve() -> Json<Value> {
    Json(document())
}

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = SCHEMAS.into();
        settings.meta_schema = None;
        settings.contract = Contract::Serialize;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for operation in operations::all() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = describe(&operation, &mut generator);
    }
    let responses = statuses::components(&mut generator);
    let tags =
        Tag::ALL.map(|tag| json!({ "name": tag.as_str(), "description": tag.description() }));
    json!({
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Switchyard",
            "version": env!("CARGO_PKG_VERSION"),
            "description": description(),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "This server." }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": responses,
            "securitySchemes": {
                SECURITY_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of `switchyard keys create`, or the one that `switchyard up` shows.",
                },
            },
        },
    })
}

fn description() -> String {
    format!(
        "Chat models of the DeepSeek-V4 family behind OpenAI's API.\n\n\
         Every answer has an `x-request-id`: the client's, or a new one. Every error has the same body, \
         `{{\"error\": {{\"message\", \"type\", \"param\", \"code\"}}}}`:\n\n{}",
        statuses::markdown()
    )
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for answer in &operation.answers {
        let mut content = Map::new();
        for (kind, schema) in &answer.content {
            content.insert((*kind).to_owned(), json!({ "schema": schema(generator) }));
        }
        responses.insert(
            answer.status.to_string(),
            json!({ "description": answer.description, "content": content }),
        );
    }
    for status in operation.errors() {
        responses
            .entry(status.as_u16().to_string())
            .or_insert_with(|| json!({ "$ref": statuses::reference(status) }));
    }
    responses.sort_keys();
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag.as_str()],
        "summary": operation.summary,
        "description": operation.description,
        "responses": responses,
    });
    if !operation.parameters.is_empty() {
        described["parameters"] =
            operation.parameters.iter().map(|parameter| parameter.describe()).collect();
    }
    if let Some(body) = operation.body {
        let schema = body(generator);
        described["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if operation.access == Access::Key {
        described["security"] = json!([{ SECURITY_SCHEME: [] }]);
    }
    described
}
