//! The body of an Anthropic Messages request: which fields we know, which we refuse, and what is wrong with the rest.
//!
//! As in [`request`](super::request) no field is dropped silently. The dialect differs from the others in that
//!
//! - its system prompt, reasoning and tool results are blocks, which deepseek-recipe converts;
//! - a request that ends with an assistant's message is answered with that message's continuation;
//! - reasoning is bounded by `max_tokens` alone: `thinking.budget_tokens` must be sent along, but has no effect.

use deepseek_recipe::anthropic::messages::request::{
    MessagesMessage, MessagesThinking, MessagesTool, MessagesToolChoice,
};
use deepseek_recipe::anthropic::{MessagesRequest, MessagesResponse};
use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, OutputConstraint, ProtocolRequest,
    ThinkingType,
};
use deepseek_recipe::response::ProtocolResponse;
use deepseek_recipe_core::conversation::{Conversation, ResponseFormat};
use deepseek_recipe_core::messages::InputMessage;
use deepseek_recipe_core::tools::ToolChoice;
use serde_json::{Map, Value};

use super::compat::thinks;
use super::extras::Extras;
use super::invalid::{self, Invalid, InvalidCode, asks_for_nothing, check_object};
use super::protocol::{Asked, Protocol, Request};

#[cfg(test)]
mod tests;

/// Fields that the request type knows, or that cannot change an answer.
const HANDLED: [&str; 15] = [
    "model",
    "messages",
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "stop_sequences",
    "stream",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "metadata",
    "user_profile_id",
    // No prompt is cached between requests.
    "cache_control",
];

/// Fields of a tool that the request type knows, or that cannot change an answer here.
const TOOL_FIELDS: [&str; 8] = [
    "type",
    "name",
    "description",
    "input_schema",
    "strict",
    "cache_control",
    // The family's prompt has no place for a tool that is named but not described, so all are described.
    "defer_loading",
    "eager_input_streaming",
];

/// Blocks of reasoning to clear before the model sees them, which clients switch off in this way.
const CLEAR_THINKING: &str = "clear_thinking_20251015";

/// A request of Anthropic's Messages.
#[derive(Debug)]
pub struct Messages {
    body: MessagesRequest,
    /// JSON Schema of the answer, from `output_config.format`.
    schema: Option<Value>,
    /// Names of the tools whose arguments must follow their schema.
    strict: Vec<String>,
}

// === impl Messages ===

impl Messages {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// [`Invalid`], with the position of what is not UTF-8 or JSON, or the field that is wrong.
    pub fn from_slice(body: &[u8]) -> Result<Request<Self>, Invalid> {
        Self::from_fields(invalid::object(body)?)
    }

    /// Reads the fields of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn from_fields(mut fields: Map<String, Value>) -> Result<Request<Self>, Invalid> {
        check_context_management(&mut fields)?;
        fields.retain(|name, value| name != "speed" || value != "standard");
        let mut extras = Extras::take(&mut fields)?;
        invalid::refuse_unknown(&fields, &HANDLED)?;
        check_thinking(&fields)?;
        let strict = read_tools(&mut fields)?;
        let schema = take_schema(&mut fields)?;
        let body: MessagesRequest = invalid::typed(fields)?;
        extras.rules.single_tool_call = has_tools(&body) && wants_single_tool_call(&body);
        let body = without_thinking_before_prefill(body);
        Ok(Request { body: Self { body, schema, strict }, extras, lease: None })
    }
}

impl ProtocolRequest for Messages {
    type Response = MessagesResponse;

    fn convert(self, options: ConversionOptions) -> Result<ConversationRequest, ConversionError> {
        let any_tool = matches!(self.body.tool_choice, Some(MessagesToolChoice::Any { .. }));
        let mut converted = self.body.convert(options)?;
        if any_tool {
            require_tool(&mut converted)?;
        }
        if let Some(schema) = self.schema {
            shape(&mut converted, schema);
        }
        let tools = &mut converted.conversation.tools;
        for tool in tools.iter_mut().filter(|tool| self.strict.contains(&tool.name)) {
            tool.strict = Some(true);
        }
        continue_prefill(&mut converted.conversation)?;
        Ok(converted)
    }

    fn chunk_generator(
        request: &ConversationRequest,
        response_id: String,
        model: String,
    ) -> <Self::Response as ProtocolResponse>::ChunkGenerator {
        MessagesRequest::chunk_generator(request, response_id, model)
    }
}

impl Protocol for Messages {
    const ID_PREFIX: &'static str = "msg_";
    const PROMPT: &'static str = "messages";
    const FORMAT: &'static str = "output_config.format";

    fn model(&self) -> &str {
        &self.body.model
    }

    fn asked(&self) -> Asked {
        let body = &self.body;
        Asked {
            max_tokens: body.max_tokens,
            temperature: body.temperature,
            top_p: body.top_p,
            stream: body.stream,
            ..Asked::default()
        }
    }

    fn relax(&mut self, default_thinking: bool, extras: &mut Extras) -> Result<(), Invalid> {
        let body = &mut self.body;
        // Ranges are still checked by conversion.
        extras.temperature = body.temperature;
        extras.top_p = body.top_p;
        let thinking = thinks(
            body.thinking.as_ref().map(|thinking| thinking.r#type),
            body.output_config.as_ref().and_then(|config| config.effort),
            default_thinking,
        );
        relax_tool_choice(body, thinking, extras)
    }
}

/// Takes out an edit of the context that changes nothing. Others are refused with all unknown fields.
fn check_context_management(fields: &mut Map<String, Value>) -> Result<(), Invalid> {
    const NAME: &str = "context_management";
    let Some(management) = fields.shift_remove(NAME) else { return Ok(()) };
    let keeps_all = |edit: &Value| edit["type"] == CLEAR_THINKING && edit["keep"] == "all";
    let nothing = match management.get("edits") {
        Some(Value::Array(edits)) => edits.iter().all(keeps_all),
        Some(_) => false,
        None => asks_for_nothing(&management),
    };
    if nothing {
        return Ok(());
    }
    Err(Invalid::unsupported(NAME, "is not supported by this server; the context is used whole"))
}

fn check_thinking(fields: &Map<String, Value>) -> Result<(), Invalid> {
    let thinking = fields.get("thinking");
    check_object(thinking, "thinking", &["type", "budget_tokens", "display"])?;
    match thinking.and_then(|thinking| thinking.get("display")) {
        None | Some(Value::Null) => Ok(()),
        Some(display) if display == "summarized" => Ok(()),
        Some(_) => Err(Invalid::unsupported(
            "thinking.display",
            "can only be 'summarized': reasoning that is left out could not come back with the next request",
        )),
    }
}

/// Checks the fields of tools, and takes out the type that says that a tool is the client's own. Returns the names of
/// strict ones, which the request type leaves out.
fn read_tools(fields: &mut Map<String, Value>) -> Result<Vec<String>, Invalid> {
    let mut strict = Vec::new();
    let Some(Value::Array(tools)) = fields.get_mut("tools") else { return Ok(strict) };
    for (index, tool) in tools.iter_mut().enumerate() {
        let is_own = tool.get("type").is_none_or(|kind| kind.is_null() || kind == "custom");
        let Some(fields) = tool.as_object_mut().filter(|_| is_own) else { continue };
        fields.shift_remove("type");
        match (fields.get("strict"), fields.get("name")) {
            (Some(Value::Bool(true)), Some(Value::String(name))) => strict.push(name.clone()),
            (None | Some(Value::Null | Value::Bool(_)), _) => {}
            (Some(_), _) => {
                let param = format!("tools[{index}].strict");
                return Err(Invalid::new(InvalidCode::Type, &param, "must be a boolean"));
            }
        }
        check_object(Some(&*tool), &format!("tools[{index}]"), &TOOL_FIELDS)?;
    }
    Ok(strict)
}

/// Takes the JSON Schema out of `output_config.format`.
fn take_schema(fields: &mut Map<String, Value>) -> Result<Option<Value>, Invalid> {
    const PATH: &str = "output_config.format";
    check_object(fields.get("output_config"), "output_config", &["effort", "format"])?;
    let config = fields.get_mut("output_config").and_then(Value::as_object_mut);
    let Some(mut format) = config.and_then(|config| config.shift_remove("format")) else {
        return Ok(None);
    };
    if format.is_null() {
        return Ok(None);
    }
    if format["type"] != "json_schema" {
        return Err(Invalid::new(InvalidCode::Value, PATH, "must be of type 'json_schema'"));
    }
    match format.get_mut("schema").map(Value::take) {
        Some(schema @ Value::Object(_)) => Ok(Some(schema)),
        _ => Err(Invalid::new(InvalidCode::Type, PATH, "must have an object as `schema`")),
    }
}

fn has_tools(body: &MessagesRequest) -> bool {
    body.tools.as_ref().is_some_and(|tools| !tools.is_empty())
}

fn wants_single_tool_call(body: &MessagesRequest) -> bool {
    use MessagesToolChoice as Choice;
    match &body.tool_choice {
        Some(
            Choice::Auto { disable_parallel_tool_use }
            | Choice::Any { disable_parallel_tool_use }
            | Choice::Tool { disable_parallel_tool_use, .. },
        ) => *disable_parallel_tool_use == Some(true),
        Some(Choice::None) | None => false,
    }
}

/// Takes a tool choice that deepseek-recipe would refuse, or not heed, out of a request that thinks: the grammar of the
/// answer forces it.
fn relax_tool_choice(
    body: &mut MessagesRequest,
    thinking: bool,
    extras: &mut Extras,
) -> Result<(), Invalid> {
    let name = match &body.tool_choice {
        Some(MessagesToolChoice::Any { .. }) => None,
        Some(MessagesToolChoice::Tool { name, .. }) => Some(name.clone()),
        Some(MessagesToolChoice::Auto { .. } | MessagesToolChoice::None) | None => return Ok(()),
    };
    let wrong = |what: &str| Err(Invalid::new(InvalidCode::Value, "tool_choice", what));
    let Some(tools) = body.tools.as_mut().filter(|tools| !tools.is_empty()) else {
        return wrong("asks for a tool, but `tools` has none");
    };
    let is_named = |tool: &MessagesTool, named: &str| matches!(tool, MessagesTool::Client { name, .. } if name == named);
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

/// A message to be continued leaves no place for reasoning before it. Where the request does not ask for reasoning,
/// the model's default gives way.
fn without_thinking_before_prefill(mut body: MessagesRequest) -> MessagesRequest {
    let is_prefill = matches!(body.messages.last(), Some(MessagesMessage::Assistant(_)));
    let effort = body.output_config.as_ref().and_then(|config| config.effort);
    if is_prefill && body.thinking.is_none() && effort.is_none() {
        body.thinking =
            Some(MessagesThinking { r#type: ThinkingType::Disabled, budget_tokens: None });
    }
    body
}

/// What deepseek-recipe takes for leave to call a tool is a demand in this dialect.
fn require_tool(converted: &mut ConversationRequest) -> Result<(), ConversionError> {
    if converted.conversation.thinking_mode {
        return Err(ConversionError::bad_request(
            "Thinking mode does not support this tool_choice",
        ));
    }
    converted.conversation.tool_choice = ToolChoice::Required;
    converted.parsing_options.starts_in_tool_calls = true;
    if let Some(OutputConstraint::ToolCalls { required, .. }) =
        &mut converted.inference_options.output_constraint
    {
        *required = true;
    }
    Ok(())
}

/// Asks for an answer of this form, in the prompt and of the sampler; tools come first, as in the other dialects.
fn shape(converted: &mut ConversationRequest, schema: Value) {
    let constraint = &mut converted.inference_options.output_constraint;
    if constraint.is_none() {
        *constraint = Some(OutputConstraint::Json { schema: Some(schema.clone()) });
    }
    converted.conversation.response_format = ResponseFormat::JsonSchema(schema);
}

/// Lets an answer continue the assistant's message that the request ends with.
fn continue_prefill(conversation: &mut Conversation) -> Result<(), ConversionError> {
    let thinking = conversation.thinking_mode;
    let Some(InputMessage::Assistant { tool_calls: None, prefix, .. }) =
        conversation.messages.last_mut()
    else {
        return Ok(());
    };
    if thinking {
        return Err(ConversionError::bad_request(
            "messages: the last message is the assistant's, which cannot be continued in thinking mode; \
             end with a user message, or switch thinking off",
        ));
    }
    *prefix = true;
    Ok(())
}
