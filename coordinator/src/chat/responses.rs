//! The body of an OpenAI Responses request, and the responses that are kept for later.
//!
//! - [`items`]: what a conversation consists of.
//! - [`settings`]: what concerns a response as an object, not what the model writes.
//! - [`store`]: finished and running responses, for a while.
//!
//! As in [`request`](super::request) no field is dropped silently. Tools that would run on the server (web search, file
//! search, code interpreters, MCP) are refused by name: this server runs none.

pub mod items;
pub mod settings;
pub mod store;

use deepseek_recipe::openai::responses::request::{
    ResponsesNamedToolChoice, ResponsesRequest, ResponsesTool, ResponsesToolChoice,
};
use deepseek_recipe::openai::responses::response::ResponsesResponse;
use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ProtocolRequest, WebSearchBehavior,
};
use deepseek_recipe::response::ProtocolResponse;
use serde_json::{Map, Value};

use super::compat::thinks;
use super::constraint::StrictTools;
use super::extras::Extras;
use super::invalid::{self, Invalid, InvalidCode, asks_for_nothing, check_object};
use super::protocol::{Asked, Protocol, Request};
use settings::Settings;

#[cfg(test)]
mod tests;

/// Fields that the request type knows.
const HANDLED: [&str; 12] = [
    "model",
    "instructions",
    "max_output_tokens",
    "reasoning",
    "stream",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
];

/// Fields of a function that the request type knows, or that cannot change an answer: all tools are described at once.
const FUNCTION_FIELDS: [&str; 6] =
    ["type", "name", "description", "parameters", "strict", "defer_loading"];

/// A request as it was sent. Its conversation may begin in earlier responses.
#[derive(Debug)]
pub struct Call {
    /// What concerns the response as an object.
    pub settings: Settings,
    /// The conversation, from its first item.
    input: Vec<Value>,
    fields: Map<String, Value>,
    extras: Extras,
}

/// A request of OpenAI's Responses.
#[derive(Debug)]
pub struct Responses(ResponsesRequest);

// === impl Call ===

impl Call {
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
        let mut extras = Extras::take(&mut fields)?;
        let settings = Settings::take(&mut fields)?;
        let input = items::read(fields.shift_remove("input"))?;
        invalid::refuse_unknown(&fields, &HANDLED)?;
        check_nested(&fields)?;
        check_tools(&fields)?;
        if settings.includes_logprobs() && fields.get("top_logprobs").is_none_or(asks_for_nothing) {
            fields.insert("top_logprobs".to_owned(), 0.into());
        }
        let has_tools = fields.get("tools").is_some_and(|tools| !asks_for_nothing(tools));
        extras.rules.single_tool_call = has_tools && !settings.parallel_tool_calls();
        extras.rules.strict_tools = StrictTools::read(fields.get("tools"));
        Ok(Self { settings, input, fields, extras })
    }

    /// Puts the items of an earlier response before this request's own.
    pub fn continues(&mut self, mut history: Vec<Value>) {
        history.append(&mut self.input);
        self.input = history;
    }

    /// Puts items that the server made in the place of those that only name them.
    ///
    /// # Errors
    /// [`Invalid`] for the first that `find` does not know.
    pub fn resolve(&mut self, find: impl Fn(&str) -> Option<Value>) -> Result<(), Invalid> {
        items::resolve(&mut self.input, find)
    }

    /// The request proper, and the items of its conversation.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn into_request(self) -> Result<(Request<Responses>, Vec<Value>), Invalid> {
        let Self { input, mut fields, extras, .. } = self;
        if !input.is_empty() {
            fields.insert("input".to_owned(), input.clone().into());
        }
        let body = invalid::typed(fields).map_err(|error| match error.param.as_deref() {
            Some("input") => items::culprit(&input).unwrap_or(error),
            _ => error,
        })?;
        let body = Responses(body);
        Ok((Request { body, extras, lease: None }, input))
    }
}

/// Refuses what the request type would leave out of its objects.
fn check_nested(fields: &Map<String, Value>) -> Result<(), Invalid> {
    check_object(fields.get("reasoning"), "reasoning", &["effort", "summary", "generate_summary"])?;
    check_object(fields.get("text"), "text", &["format", "verbosity"])?;
    let verbosity = fields.get("text").and_then(|text| text.get("verbosity"));
    if verbosity.is_some_and(|verbosity| !verbosity.is_null() && verbosity != "medium") {
        let what = "can only be 'medium': the model has no such setting; say it in `instructions`";
        return Err(Invalid::unsupported("text.verbosity", what));
    }
    match fields.get("max_output_tokens") {
        // Conversion would speak of `max_tokens`.
        Some(Value::Number(number)) if number.as_u64() == Some(0) => {
            Err(Invalid::new(InvalidCode::Value, "max_output_tokens", "is 0, but must be positive"))
        }
        _ => Ok(()),
    }
}

/// Refuses tools that the request type would leave out.
fn check_tools(fields: &Map<String, Value>) -> Result<(), Invalid> {
    let Some(Value::Array(tools)) = fields.get("tools") else { return Ok(()) };
    for (index, tool) in tools.iter().enumerate() {
        let path = format!("tools[{index}]");
        match tool["type"].as_str() {
            Some("function") => check_object(Some(tool), &path, &FUNCTION_FIELDS)?,
            // The request type checks these, and says when their type is missing.
            Some("custom" | "namespace") | None => {}
            Some(kind) => {
                let what = format!("is {kind:?}, which would run on the server; it runs no tools");
                return Err(Invalid::unsupported(&format!("{path}.type"), &what));
            }
        }
    }
    Ok(())
}

impl ProtocolRequest for Responses {
    type Response = ResponsesResponse;

    fn convert(self, options: ConversionOptions) -> Result<ConversationRequest, ConversionError> {
        self.0.convert(options.with_responses_web_search(WebSearchBehavior::Reject))
    }

    fn chunk_generator(
        request: &ConversationRequest,
        response_id: String,
        model: String,
    ) -> <Self::Response as ProtocolResponse>::ChunkGenerator {
        ResponsesRequest::chunk_generator(request, response_id, model)
    }
}

impl Protocol for Responses {
    const ID_PREFIX: &'static str = "resp_";
    const PROMPT: &'static str = "input";
    const FORMAT: &'static str = "text.format";

    fn model(&self) -> &str {
        &self.0.model
    }

    fn asked(&self) -> Asked {
        let body = &self.0;
        Asked {
            max_tokens: body.max_output_tokens,
            temperature: body.temperature,
            top_p: body.top_p,
            stream: body.stream,
            ..Asked::default()
        }
    }

    fn relax(&mut self, default_thinking: bool, extras: &mut Extras) -> Result<(), Invalid> {
        let body = &mut self.0;
        // Ranges are still checked by conversion.
        extras.temperature = body.temperature;
        extras.top_p = body.top_p;
        let effort = body.reasoning.as_ref().and_then(|reasoning| reasoning.effort);
        relax_tool_choice(body, thinks(None, effort, default_thinking), extras)
    }
}

/// Takes a tool choice that deepseek-recipe would refuse, or not heed, out of a request that thinks: the grammar of the
/// answer forces it.
fn relax_tool_choice(
    body: &mut ResponsesRequest,
    thinking: bool,
    extras: &mut Extras,
) -> Result<(), Invalid> {
    use ResponsesNamedToolChoice as Named;
    let name = match &body.tool_choice {
        Some(ResponsesToolChoice::Required) => None,
        Some(ResponsesToolChoice::Named(Named::Function { name } | Named::Custom { name })) => {
            Some(name.clone())
        }
        // Conversion refuses a choice of web search.
        Some(ResponsesToolChoice::Named(Named::WebSearch | Named::WebSearch20250826)) => {
            return Ok(());
        }
        Some(ResponsesToolChoice::None | ResponsesToolChoice::Auto) | None => return Ok(()),
    };
    let wrong = |what: &str| Err(Invalid::new(InvalidCode::Value, "tool_choice", what));
    let Some(tools) = body.tools.as_mut().filter(|tools| !tools.is_empty()) else {
        return wrong("asks for a tool, but `tools` has none");
    };
    let is_named = |tool: &ResponsesTool, named: &str| {
        matches!(tool, ResponsesTool::Function(function) if function.name == named)
            || matches!(tool, ResponsesTool::Custom { name } if name == named)
    };
    if let Some(name) = &name
        && !tools.iter().any(|tool| is_named(tool, name))
    {
        return wrong(&format!("names the tool {name:?}, which is not in `tools`"));
    }
    if !thinking {
        return Ok(());
    }
    if let Some(name) = name {
        tools.retain(|tool| is_named(tool, &name));
    }
    body.tool_choice = None;
    extras.rules.tool_required = true;
    Ok(())
}
