//! `GET /openapi.json`: this API as an OpenAPI 3.1 document.
//!
//! It is made of types and tables that the server itself uses, and kept nowhere: request parameters come from
//! [`parameters`](crate::chat::parameters), answers from the types that are serialised, statuses from
//! [`statuses`]. A new route needs one entry in [`operations`]; a test fails until it has one.

pub mod operations;
pub mod statuses;
pub mod requests;
pub mod answers;

use axum::Json;
use axum::extract::State;
use schemars::generate::{Contract, SchemaSettings};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Context;
use operations::{Access, Operation, Tag};

#[cfg(test)]
mod tests;

/// Version of the OpenAPI specification.
const OPENAPI_VERSION: &str = "3.1.0";
/// Name of the security scheme of client keys.
const KEY_SCHEME: &str = "key";
/// Name of the security scheme of the admin key.
const ADMIN_KEY_SCHEME: &str = "adminKey";
/// Where schemas that are referred to lie in the document.
const SCHEMAS: &str = "/components/schemas";

/// Makes the schema of a type; see [`SchemaGenerator::subschema_for`].
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Makes the schemas of one document.
#[derive(Debug)]
struct Generators {
    /// Of what is sent, where a field may be left out.
    requests: SchemaGenerator,
    /// Of what is answered.
    answers: SchemaGenerator,
}

/// The document of what this listener serves.
pub async fn serve(State(context): State<Context>) -> Json<Value> {
    Json(document(context.admin.is_some_and(|admin| !admin.has_listener())))
}

/// The whole document, with the admin API or without.
#[must_use]
pub fn document(has_admin: bool) -> Value {
    let admin = if has_admin { operations::of_admin() } else { Vec::new() };
    let operations = [operations::all(), admin].concat();
    let mut generators = Generators::new();
    let mut paths = Map::new();
    for operation in &operations {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = describe(operation, &mut generators);
    }
    let responses = statuses::components(&mut generators.answers);
    let tags = Tag::ALL.into_iter().filter(|tag| operations.iter().any(|it| it.tag == *tag));
    let tags: Vec<_> =
        tags.map(|tag| json!({ "name": tag.as_str(), "description": tag.description() })).collect();
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
            "schemas": generators.into_definitions(),
            "responses": responses,
            "securitySchemes": security_schemes(has_admin),
        },
    })
}

fn security_schemes(has_admin: bool) -> Value {
    let bearer =
        |description| json!({ "type": "http", "scheme": "bearer", "description": description });
    let mut schemes = json!({
        KEY_SCHEME:
            bearer("A key of `switchyard keys create`, or the one that `switchyard up` shows."),
    });
    if has_admin {
        schemes[ADMIN_KEY_SCHEME] = bearer("The key in the file of `--admin-key-file`.");
    }
    schemes
}

fn description() -> String {
    format!(
        "Chat models of the DeepSeek-V4 family behind OpenAI's API, and Anthropic's.\n\n\
         Every answer has an `x-request-id`: the client's, or a new one. Every error has the same body, \
         `{{\"error\": {{\"message\", \"type\", \"param\", \"code\"}}}}`, but for those of Anthropic's routes:\n\n{}",
        statuses::markdown()
    )
}

fn describe(operation: &Operation, generators: &mut Generators) -> Value {
    let mut responses = Map::new();
    for answer in &operation.answers {
        let mut content = Map::new();
        for (kind, schema) in &answer.content {
            content
                .insert((*kind).to_owned(), json!({ "schema": schema(&mut generators.answers) }));
        }
        responses.insert(
            answer.status.to_string(),
            json!({ "description": answer.description, "content": content }),
        );
    }
    for status in operation.errors() {
        responses
            .entry(status.as_u16().to_string())
            .or_insert_with(|| json!({ "$ref": statuses::reference(status, operation.shape()) }));
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
    if let Some((kind, body)) = operation.body {
        let schema = body(&mut generators.requests);
        described["requestBody"] =
            json!({ "required": true, "content": { kind: { "schema": schema } } });
    }
    match operation.access {
        Access::Open => {}
        Access::Key => described["security"] = json!([{ KEY_SCHEME: [] }]),
        Access::AdminKey => described["security"] = json!([{ ADMIN_KEY_SCHEME: [] }]),
    }
    described
}

// === impl Generators ===

impl Generators {
    fn new() -> Self {
        let generator = |contract: Contract| {
            let settings = SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
                settings.contract = contract;
            });
            settings.into_generator()
        };
        Self { requests: generator(Contract::Deserialize), answers: generator(Contract::Serialize) }
    }

    /// What references lead to. No type is both sent and answered, as a test checks.
    fn into_definitions(mut self) -> Map<String, Value> {
        let mut definitions = self.requests.take_definitions(true);
        definitions.extend(self.answers.take_definitions(true));
        definitions
    }
}
