//! Tool calls as DeepSeek-V4 writes them (DSML), as a grammar.
//!
//! ```text
//! <｜DSML｜tool_calls>
//! <｜DSML｜invoke name="NAME">
//! <｜DSML｜parameter name="KEY" string="true">raw text</｜DSML｜parameter>
//! <｜DSML｜parameter name="KEY" string="false">JSON</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜tool_calls>
//! ```
//! `｜DSML｜` is one token, which no text contains; so raw text ends where `</` stands before it.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Grammar, bounds, json_term, text_literal};
use crate::Error;

/// A tool that may be called.
#[derive(Clone, Copy, Debug)]
pub struct Tool<'a> {
    /// Its name.
    pub name: &'a str,
    /// JSON Schema of its arguments, an object. Enforced for strict tools only.
    pub parameters: &'a Value,
    /// Whether arguments must match the schema.
    pub is_strict: bool,
}

/// How many tools one answer may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParallelCalls {
    /// One.
    Forbidden,
    /// Any number.
    Allowed,
}

/// When and how often tools are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolUse {
    /// Id of the token `｜DSML｜`.
    pub dsml: u32,
    /// Whether the answer must be a call; otherwise it may be text, with or without calls after it.
    pub is_required: bool,
    /// Whether the prompt ends with the opening `tool_calls` tag.
    pub is_opened: bool,
    /// Calls in one answer.
    pub parallel_calls: ParallelCalls,
}

/// Raw text up to and with the `</` before a closing tag.
const TEXT: &str = r#""true\">" TEXT_END"#;

/// The rules of one grammar, as they are written.
struct Writer {
    dsml: u32,
    text: String,
    num_parameters: usize,
}

pub(super) fn grammar(
    tools: &[Tool<'_>],
    tool_use: &ToolUse,
    answer: Option<&Grammar>,
) -> Result<String, Error> {
    let mut writer = Writer { dsml: tool_use.dsml, text: String::new(), num_parameters: 0 };
    let dsml = writer.dsml;
    let opening = format!(r#"<[{dsml}]> "tool_calls>\n""#);
    let only_calls = format!(r#""\n\n<" {opening} calls"#);
    let start = match (tool_use.is_opened, tool_use.is_required, answer) {
        (true, ..) => "calls".to_owned(),
        (false, true, _) => only_calls,
        (false, false, None) => format!("FREE | FREE_OPEN {opening} calls"),
        (false, false, Some(answer)) => {
            let no_term = || {
                Error::Refused("a grammar of one's own cannot be combined with tools".to_owned())
            };
            format!("{} | {only_calls}", answer.term().ok_or_else(no_term)?)
        }
    };
    let more = match tool_use.parallel_calls {
        ParallelCalls::Forbidden => "",
        ParallelCalls::Allowed => "+",
    };
    let names: Vec<_> = (0..tools.len()).map(|index| format!("tool_{index}")).collect();
    writer.rule("start", &start);
    writer.rule("calls", &format!(r#"call{more} "</" <[{dsml}]> "tool_calls>""#));
    writer.rule("call", &format!(r#""<" <[{dsml}]> "invoke name=" ({})"#, names.join(" | ")));
    for (name, tool) in names.iter().zip(tools) {
        let arguments = writer.arguments(tool)?;
        let tag = text_literal(&format!("\"{}\">\n", tool.name));
        writer.rule(name, &format!(r#"{tag} {arguments} "</" <[{dsml}]> "invoke>\n""#));
    }
    let any = format!("{TEXT} | \"false\\\">\" {} \"</\"", json_term(&Value::Bool(true)));
    writer.rule(
        "parameter",
        &format!(r#""<" <[{dsml}]> "parameter name=\"" KEY "\" string=\"" ({any}) <[{dsml}]> "parameter>\n""#),
    );
    writer.rule("KEY", r#"/[^"<>\s]+/"#);
    writer.rule("FREE", "/(?s:.*)/");
    writer.rule("FREE_OPEN", "/(?s:.*)</");
    writer.rule("TEXT_END", r"/(?s:.*)<\//");
    Ok(writer.text)
}

// === impl Writer ===

impl Writer {
    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// The parameters of a call: those of the schema, in its order, for a strict tool; any for another.
    fn arguments(&mut self, tool: &Tool<'_>) -> Result<String, Error> {
        if !tool.is_strict {
            return Ok("parameter*".to_owned());
        }
        let Some(schema) = tool.parameters.as_object() else {
            return Ok(String::new());
        };
        let required: Vec<_> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut terms = Vec::new();
        for (key, property) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            if key.is_empty() || key.contains(['"', '<', '>']) || key.contains(char::is_whitespace)
            {
                let problem = format!(
                    "a strict tool's parameter cannot be called {key:?}; avoid blanks, quotes and angle brackets"
                );
                return Err(Error::Refused(problem));
            }
            bounds::check(property)?;
            let rule = self.parameter(key, property, schema);
            let optional = if required.contains(&key.as_str()) { "" } else { "?" };
            terms.push(format!("{rule}{optional}"));
        }
        Ok(terms.join(" "))
    }

    /// Writes the rule of one parameter; returns its name.
    fn parameter(&mut self, key: &str, schema: &Value, root: &Map<String, Value>) -> String {
        let name = format!("parameter_{}", self.num_parameters);
        self.num_parameters += 1;
        let dsml = self.dsml;
        let tag = text_literal(&format!("parameter name=\"{key}\" string=\""));
        let value = value(schema, root);
        self.rule(&name, &format!(r#""<" <[{dsml}]> {tag} ({value}) <[{dsml}]> "parameter>\n""#));
        name
    }
}

/// What stands between `string="` and the closing tag, with the `</`.
fn value(schema: &Value, root: &Map<String, Value>) -> String {
    let json = |schema: &Value| {
        format!("\"false\\\">\" {} \"</\"", json_term(&with_definitions(schema, root)))
    };
    let Some(fields) = schema.as_object() else { return format!("{TEXT} | {}", json(schema)) };
    if let Some(texts) = texts(fields) {
        return texts;
    }
    // Anything beside a type may say something of strings, which only JSON's form of them can obey.
    let is_plain = fields
        .keys()
        .all(|key| matches!(key.as_str(), "type" | "description" | "title" | "default"));
    match fields.get("type") {
        Some(Value::String(kind)) if kind == "string" && is_plain => TEXT.to_owned(),
        Some(Value::Array(kinds)) if is_plain && kinds.iter().any(|kind| kind == "string") => {
            let others: Vec<_> = kinds.iter().filter(|kind| *kind != "string").cloned().collect();
            let mut rest = fields.clone();
            rest.insert("type".to_owned(), Value::Array(others));
            format!("{TEXT} | {}", json(&Value::Object(rest)))
        }
        None if is_plain => format!("{TEXT} | {}", json(schema)),
        _ => json(schema),
    }
}

/// The texts of an `enum` or `const` of nothing but strings.
fn texts(fields: &Map<String, Value>) -> Option<String> {
    let values = match (fields.get("enum"), fields.get("const")) {
        (Some(Value::Array(values)), None) => values.as_slice(),
        (None, Some(value)) => std::slice::from_ref(value),
        _ => return None,
    };
    let texts: Option<Vec<_>> =
        values.iter().map(|value| value.as_str().map(text_literal)).collect();
    let texts = texts.filter(|texts| !texts.is_empty())?;
    Some(format!("\"true\\\">\" ({}) \"</\"", texts.join(" | ")))
}

/// A part of a schema that may refer to definitions of the whole.
fn with_definitions(schema: &Value, root: &Map<String, Value>) -> Value {
    let Value::Object(fields) = schema else { return schema.clone() };
    let mut fields = fields.clone();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(key) {
            fields.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(fields)
}
