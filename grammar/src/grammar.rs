//! Grammars as text, in llguidance's Lark dialect: JSON Schema, regular expressions, tool calls.

use serde_json::{Value, json};

use crate::Error;

mod bounds;
mod tools;
#[cfg(test)]
mod tests;

pub use tools::{ParallelCalls, Tool, ToolUse};

/// Longest grammar, in bytes.
pub const BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of brackets: parsers of grammars and schemas recurse.
pub const DEPTH_MAX: usize = 64;

/// Blanks that a JSON answer may have between its parts. Bounded, so that a model cannot go on with blanks for ever.
const JSON_BLANKS: &str = r"[ \n\t]{1,32}";

/// What a grammar of one rule begins with.
const START: &str = "start: ";

/// A grammar, not compiled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar(String);

// === impl Grammar ===

impl Grammar {
    /// A grammar in the Lark dialect, as it is.
    #[must_use]
    pub fn lark(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// A JSON document that `schema` accepts. `oneOf` is taken as `anyOf`; keywords that cannot be enforced are refused
    /// when it is compiled.
    ///
    /// # Errors
    /// [`Error::Refused`] for bounds of numbers that would not hold.
    pub fn json_schema(schema: &Value) -> Result<Self, Error> {
        bounds::check(schema)?;
        Ok(Self(format!("{START}{}", json_term(schema))))
    }

    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self(format!("{START}{}", json_term(&json!({ "type": "object" }))))
    }

    /// Text that matches a regular expression from end to end. No look-around, no back references.
    #[must_use]
    pub fn regex(regex: &str) -> Self {
        Self(format!("{START}{}", regex_literal(regex)))
    }

    /// What a model may say that has `tools`: calls, or, unless they are required, an `answer` (any text if there is
    /// none given).
    ///
    /// # Errors
    /// [`Error::Refused`] for a parameter that DSML cannot name, and for an `answer` of more than one rule.
    pub fn tool_calls(
        tools: &[Tool<'_>],
        tool_use: &ToolUse,
        answer: Option<&Self>,
    ) -> Result<Self, Error> {
        tools::grammar(tools, tool_use, answer).map(Self)
    }

    /// The right side of the only rule, if there is only one.
    fn term(&self) -> Option<&str> {
        self.0.strip_prefix(START).filter(|term| !term.contains('\n'))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses what would cost too much even to parse.
    pub(crate) fn check_size(&self) -> Result<(), Error> {
        let within = |unit, actual, most| {
            if actual > most { Err(Error::TooLarge { unit, actual, most }) } else { Ok(()) }
        };
        within("bytes", self.0.len(), BYTES_MAX)?;
        within("levels of brackets", depth(&self.0), DEPTH_MAX)
    }
}

/// Most brackets that are open at once, whatever they enclose.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// A term that matches JSON documents of `schema`.
fn json_term(schema: &Value) -> String {
    let options = json!({ "whitespace_pattern": JSON_BLANKS, "coerce_one_of": true });
    // Whoever sent the schema does not choose the options.
    let schema = if let Some(fields) = schema.as_object() {
        let mut fields = fields.clone();
        fields.insert("x-guidance".to_owned(), options);
        Value::Object(fields)
    } else {
        // `true` takes anything, `false` nothing; the compiler refuses the rest.
        json!({ "allOf": [schema], "x-guidance": options })
    };
    format!("%json {schema}")
}

/// `/regex/`, with its slashes and line ends escaped.
fn regex_literal(regex: &str) -> String {
    let mut literal = String::from("/");
    let mut escaped = false;
    for char in regex.chars() {
        match char {
            '/' if !escaped => literal.push_str("\\/"),
            '\n' => literal.push_str(if escaped { "n" } else { "\\n" }),
            '\r' => literal.push_str(if escaped { "r" } else { "\\r" }),
            char => literal.push(char),
        }
        escaped = char == '\\' && !escaped;
    }
    literal.push('/');
    literal
}

/// `"text"`, in JSON's escapes, which are Lark's.
fn text_literal(text: &str) -> String {
    Value::from(text).to_string()
}
