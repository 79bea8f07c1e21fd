//! The parameters of Create chat completion, in one table.
//!
//! Three readers share it, so that they cannot contradict each other: the `form_schema` of a model (what a form or
//! the playground draws), the request body in the API document, and the table of `docs/api.md`, which a test compares.
//! What the server accepts is decided by [`request`](super::request); tests hold the table against it.
//!
//! A property carries, beside JSON Schema's own keywords:
//! - `x-order`: its position in a form, from 0;
//! - `x-group`: `basic` or `advanced`;
//! - `x-required`: true for what a form must fill in;
//! - `x-extension`: true for what OpenAI's API does not have, so that its clients pass it as an extra field;
//! - `x-multiline`: true for text that deserves several lines.

mod table;
mod shapes;

use serde_json::{Map, Value, json};

use super::compat::Compat;

#[cfg(test)]
mod tests;

/// The dialect of every schema here.
const SCHEMA_DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What of the schema depends on the model and the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Longest sequence, prompt and answer together, in tokens. `None`: depends on the model.
    pub context_length: Option<u32>,
    /// Whether requests that do not say think. `None`: depends on the model.
    pub default_thinking: Option<bool>,
    /// Whose API the server keeps to.
    pub compat: Compat,
}

/// Where a form shows a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// At once.
    Basic,
    /// On request.
    Advanced,
    /// Not at all: another name of a parameter, or of use to programs only.
    Unlisted,
}

/// Whose parameter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// OpenAI's API has it.
    OpenAi,
    /// OpenAI's API does not have it; its clients send it as an extra field.
    Extension,
}

/// One parameter of a chat request.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    group: Group,
    origin: Origin,
    required: bool,
    multiline: bool,
    schema: Value,
}

/// All parameters that do something, in the order of a form; unlisted ones last.
#[must_use]
pub fn all(facts: &Facts) -> Vec<Parameter> {
    let mut parameters = table::text();
    parameters.extend(table::length_and_thinking(facts));
    parameters.extend(table::sampling());
    parameters.extend(table::bias());
    parameters.extend(table::output());
    parameters.extend(table::tools());
    parameters.extend(table::bookkeeping());
    parameters.extend(table::unlisted());
    parameters.retain(|parameter| acts(parameter.name, facts.compat));
    // A stable sort: within a group the table's order stays.
    parameters.sort_by_key(|parameter| parameter.group.rank());
    parameters
}

/// Whether a parameter does something; see [`compat`](super::compat).
fn acts(name: &str, compat: Compat) -> bool {
    match compat {
        Compat::OpenAi => true,
        Compat::DeepSeek => !["n", "presence_penalty", "frequency_penalty"].contains(&name),
    }
}

/// The JSON Schema of a form for one model: everything but the model itself.
///
/// Exactly one of `prompt` and `messages` is given; `system_prompt` belongs to `prompt`.
#[must_use]
pub fn form_schema(model: &str, facts: &Facts) -> Value {
    let listed = all(facts).into_iter().filter(|parameter| parameter.group != Group::Unlisted);
    let properties: Map<_, _> =
        listed.enumerate().map(|(order, parameter)| parameter.property(Some(order))).collect();
    json!({
        "$schema": SCHEMA_DIALECT,
        "title": model,
        "type": "object",
        "properties": properties,
        "oneOf": conversation_forms(&[]),
    })
}

/// The JSON Schema of a request body for any model.
#[must_use]
pub fn body_schema() -> Value {
    let model = json!({
        "title": "Model",
        "description": "Id of a served model, as `GET /v1/models` lists it.",
        "type": "string",
    });
    let mut properties = Map::from_iter([("model".to_owned(), model)]);
    properties.extend(all(&Facts::default()).into_iter().map(|parameter| parameter.property(None)));
    json!({
        "title": "ChatCompletionRequest",
        "type": "object",
        "properties": properties,
        "oneOf": conversation_forms(&["model"]),
    })
}

/// The schemas of the parameters named, for a body of another dialect that has them, too.
#[must_use]
pub fn properties(names: &[&str]) -> Map<String, Value> {
    let named = all(&Facts::default()).into_iter().filter(|it| names.contains(&it.name));
    named.map(|parameter| parameter.property(None)).collect()
}

/// The two ways to give a conversation; both need the fields `also`, too.
fn conversation_forms(also: &[&str]) -> Value {
    let with = |field| also.iter().copied().chain([field]).collect::<Vec<_>>();
    let without = |fields: &[&str]| {
        let given: Vec<_> = fields.iter().map(|field| json!({ "required": [field] })).collect();
        json!({ "anyOf": given })
    };
    json!([
        { "title": "Prompt", "required": with("prompt"), "not": without(&["messages"]) },
        {
            "title": "Messages",
            "required": with("messages"),
            "not": without(&["prompt", "system_prompt"]),
        },
    ])
}

// === impl Group ===

impl Group {
    /// `x-group`; `None` for what is not listed.
    #[must_use]
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Basic => Some("basic"),
            Self::Advanced => Some("advanced"),
            Self::Unlisted => None,
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Basic => 0,
            Self::Advanced => 1,
            Self::Unlisted => 2,
        }
    }
}

// === impl Parameter ===

impl Parameter {
    /// An advanced parameter of OpenAI's API.
    fn new(
        name: &'static str,
        title: &'static str,
        schema: Value,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            description,
            group: Group::Advanced,
            origin: Origin::OpenAi,
            required: false,
            multiline: false,
            schema,
        }
    }

    fn basic(self) -> Self {
        Self { group: Group::Basic, ..self }
    }

    fn unlisted(self) -> Self {
        Self { group: Group::Unlisted, ..self }
    }

    fn extension(self) -> Self {
        Self { origin: Origin::Extension, ..self }
    }

    fn required(self) -> Self {
        Self { required: true, ..self }
    }

    fn multiline(self) -> Self {
        Self { multiline: true, ..self }
    }

    /// The field's name in a request.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, for the reader of a form or of the API document.
    #[must_use]
    pub fn description(&self) -> &'static str {
        self.description
    }

    /// Where a form shows it.
    #[must_use]
    pub fn group(&self) -> Group {
        self.group
    }

    /// Whose it is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Its JSON Schema, without title and description.
    #[must_use]
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Name and whole schema, as a property of an object.
    fn property(self, order: Option<usize>) -> (String, Value) {
        let mut property = Map::new();
        property.insert("title".to_owned(), self.title.into());
        property.insert("description".to_owned(), self.description.into());
        if let Value::Object(schema) = self.schema {
            property.extend(schema);
        }
        if let (Some(order), Some(group)) = (order, self.group.as_str()) {
            property.insert("x-order".to_owned(), order.into());
            property.insert("x-group".to_owned(), group.into());
        }
        let marks = [
            ("x-required", self.required),
            ("x-extension", self.origin == Origin::Extension),
            ("x-multiline", self.multiline),
        ];
        property.extend(
            marks
                .into_iter()
                .filter(|(_, is_set)| *is_set)
                .map(|(m, _)| (m.to_owned(), true.into())),
        );
        (self.name.to_owned(), Value::Object(property))
    }
}
