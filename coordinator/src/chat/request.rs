//! The body of a chat request: which fields we know, which we refuse, and what is wrong with the rest.
//!
//! No field is dropped silently. A field either does something, or only concerns the client's bookkeeping
//! (such as `user`), or asks for nothing (null, false, 0, empty), or is refused by name.

use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use serde_json::{Map, Value, json};

use super::constraint::StrictTools;
use super::extras::{Extras, N_MAX};
use super::invalid::{self, Invalid, InvalidCode};
use super::protocol::Request;

#[cfg(test)]
mod tests;

/// Fields that the request type knows.
const HANDLED: [&str; 20] = [
    "messages",
    "model",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "response_format",
    "tools",
    "tool_choice",
    "reasoning_effort",
    "thinking",
    "parallel_tool_calls",
];

/// OpenAI's newer name of `max_tokens`.
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";
/// What most requests consist of.
const MESSAGES: &str = "messages";
/// The last message, in the short form.
const PROMPT: &str = "prompt";
/// The first message, in the short form.
const SYSTEM_PROMPT: &str = "system_prompt";
/// What the answer must look like.
const RESPONSE_FORMAT: &str = "response_format";

/// A request of OpenAI's chat completions, with the family's own fields.
pub type ChatRequest = Request<ChatCompletionRequest>;

// === impl ChatRequest ===

impl ChatRequest {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// [`Invalid`], with the position of what is not UTF-8 or JSON, or the field that is wrong.
    pub fn from_slice(body: &[u8]) -> Result<Self, Invalid> {
        Self::from_fields(invalid::object(body)?)
    }

    /// Reads the fields of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Self, Invalid> {
        rename_max_completion_tokens(&mut fields)?;
        prompt_as_messages(&mut fields)?;
        developers_are_systems(&mut fields);
        check_n(&fields)?;
        let mut extras = Extras::take(&mut fields)?;
        extras.rules.grammar = take_grammar(&mut fields)?;
        extras.rules.strict_tools = StrictTools::read(fields.get("tools"));
        invalid::refuse_unknown(&fields, &HANDLED)?;
        let body: ChatCompletionRequest = invalid::typed(fields)?;
        if body.thinking.as_ref().is_some_and(|thinking| thinking.budget_tokens.is_some()) {
            let what = "is not supported by this server; limit the whole answer with `max_tokens`";
            return Err(Invalid::unsupported("thinking.budget_tokens", what));
        }
        let has_tools = body.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        extras.rules.single_tool_call = has_tools && body.parallel_tool_calls == Some(false);
        Ok(Self { body, extras, lease: None })
    }
}

fn rename_max_completion_tokens(fields: &mut Map<String, Value>) -> Result<(), Invalid> {
    let Some(newer) = fields.shift_remove(MAX_COMPLETION_TOKENS).filter(|value| !value.is_null())
    else {
        return Ok(());
    };
    match fields.get("max_tokens") {
        None | Some(Value::Null) => {
            fields.insert("max_tokens".to_owned(), newer);
            Ok(())
        }
        Some(older) if *older == newer => Ok(()),
        Some(_) => Err(Invalid::new(
            InvalidCode::Value,
            MAX_COMPLETION_TOKENS,
            "differs from `max_tokens`; set one of them",
        )),
    }
}

/// The published service's short form: `prompt`, and perhaps `system_prompt`, for a conversation of one message.
fn prompt_as_messages(fields: &mut Map<String, Value>) -> Result<(), Invalid> {
    let given = |fields: &Map<String, Value>, name| {
        fields.get(name).is_some_and(|value: &Value| !value.is_null())
    };
    for name in [PROMPT, SYSTEM_PROMPT] {
        if given(fields, name) && given(fields, MESSAGES) {
            let what = "excludes `messages`; send one of the two forms";
            return Err(Invalid::new(InvalidCode::Value, name, what));
        }
    }
    let mut take = |name| match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Invalid::new(InvalidCode::Type, name, "must be a string")),
    };
    let (system, prompt) = (take(SYSTEM_PROMPT)?, take(PROMPT)?);
    let Some(prompt) = prompt else {
        return match system {
            Some(_) => Err(Invalid::new(InvalidCode::Missing, PROMPT, "is required")),
            None => Ok(()),
        };
    };
    let message = |role: &str, content| json!({ "role": role, "content": content });
    let system = system.map(|system| message("system", system));
    let messages = system.into_iter().chain([message("user", prompt)]).collect();
    fields.insert(MESSAGES.to_owned(), messages);
    Ok(())
}

/// OpenAI's newer name of the role `system`.
fn developers_are_systems(fields: &mut Map<String, Value>) {
    let messages = fields.get_mut(MESSAGES).and_then(Value::as_array_mut);
    for message in messages.into_iter().flatten() {
        if let Some(role) = message.get_mut("role")
            && role == "developer"
        {
            *role = "system".into();
        }
    }
}

/// Other types are left to the request type, which says what is wrong with them.
pub(super) fn check_n(fields: &Map<String, Value>) -> Result<(), Invalid> {
    match fields.get("n") {
        Some(n)
            if (n.is_u64() || n.is_i64())
                && !n.as_u64().is_some_and(|n| (1..=u64::from(N_MAX)).contains(&n)) =>
        {
            let what = format!("is {n}, but must be within 1..={N_MAX}");
            Err(Invalid::new(InvalidCode::Value, "n", &what))
        }
        _ => Ok(()),
    }
}

/// `response_format: {"type": "grammar", "grammar": ...}`, which the family's request type does not know.
fn take_grammar(fields: &mut Map<String, Value>) -> Result<Option<String>, Invalid> {
    let format = fields.get_mut(RESPONSE_FORMAT).and_then(Value::as_object_mut);
    let Some(format) = format.filter(|format| format.get("type").is_some_and(|it| it == "grammar"))
    else {
        return Ok(None);
    };
    let param = "response_format.grammar";
    let grammar = match format.shift_remove("grammar") {
        None | Some(Value::Null) => Err(Invalid::new(InvalidCode::Missing, param, "is required")),
        Some(Value::String(grammar)) if grammar.trim().is_empty() => {
            Err(Invalid::new(InvalidCode::Value, param, "is empty"))
        }
        Some(Value::String(grammar)) => Ok(Some(grammar)),
        Some(_) => Err(Invalid::new(InvalidCode::Type, param, "must be a string")),
    };
    fields.shift_remove(RESPONSE_FORMAT);
    grammar
}
