//! What an answer must look like, as a grammar: from `response_format`, strict tools and a forced tool choice.
//!
//! The grammar is compiled here once, with the bounds that the workers have, so that what cannot be enforced is refused
//! before it is queued. A model that thinks first does so freely: the grammar holds after `</think>`, and until then
//! the answer can neither end nor call a tool.

use std::sync::Arc;

use deepseek_recipe::request::{ConversationRequest, OutputConstraint};
use deepseek_recipe::stream::ThinkingInitialStage;
use deepseek_recipe_core::conversation::ResponseFormat;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_core::tools::{ToolChoice, ToolDefinition};
use serde_json::Value;
use switchyard_grammar::{self as grammar, Grammar, ParallelCalls, Tool, ToolUse};

use super::Error;
use super::invalid::Invalid;
use super::model::Model;
use crate::engine::request::Constraint;

mod strict;
#[cfg(test)]
mod tests;

pub(super) use strict::StrictTools;

const TOOLS: &str = "tools";

/// What a request asks of its answer beyond what its conversation says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// The answer must call a tool: forced by grammar, so in thinking mode, too.
    pub(super) tool_required: bool,
    /// At most one tool call.
    pub(super) single_tool_call: bool,
    /// `response_format` of type `grammar`, in llguidance's Lark dialect.
    pub(super) grammar: Option<String>,
    /// What strict tools ask for, conversion aside.
    pub(super) strict_tools: StrictTools,
}

/// The grammar of the answer to `request`, or `None` when it is free. Refusals name `format`, the field of the protocol
/// that says what an answer must be, or `tools`.
///
/// # Errors
/// [`Error::Invalid`] when it cannot be enforced.
pub(super) fn constraint(
    model: &Model,
    request: &ConversationRequest,
    rules: &Rules,
    format: &'static str,
) -> Result<Option<Arc<Constraint>>, Error> {
    let (grammar, param) = match answer_grammar(model, request, rules, format)? {
        Some(found) => found,
        None => return Ok(None),
    };
    let vocabulary = model.vocabulary().map_err(super::internal("preparing structured output"))?;
    vocabulary.compile(&grammar).map_err(|error| refused(param, &error))?;
    let stage = request.parsing_options.thinking_initial_stage;
    let thinks = stage.is_some_and(|stage: ThinkingInitialStage| stage.starts_in_reasoning());
    let special = |token| model.special_token_id(token);
    let constraint = Constraint {
        grammar,
        after: thinks.then(|| special(SpecialToken::ThinkingEnd)),
        forbidden_before: vec![special(SpecialToken::Eos), special(SpecialToken::Dsml)],
    };
    Ok(Some(Arc::new(constraint)))
}

/// The grammar and the field that asks for it.
fn answer_grammar(
    model: &Model,
    request: &ConversationRequest,
    rules: &Rules,
    format: &'static str,
) -> Result<Option<(Grammar, &'static str)>, Error> {
    let conversation = &request.conversation;
    let answer = match (&rules.grammar, &request.inference_options.output_constraint) {
        (Some(lark), _) => Some(Grammar::lark(lark.clone())),
        (None, Some(OutputConstraint::Json { schema: Some(converted) })) => {
            // Here a strict format is as it was sent.
            let schema = match &conversation.response_format {
                ResponseFormat::JsonSchema(sent) => strict::completed(sent, converted),
                ResponseFormat::Text | ResponseFormat::JsonObject | ResponseFormat::Regex(_) => {
                    converted.clone()
                }
            };
            Some(of_schema(&schema, format)?)
        }
        (None, _) => match &conversation.response_format {
            ResponseFormat::Text => None,
            ResponseFormat::JsonObject => Some(Grammar::json_object()),
            ResponseFormat::JsonSchema(schema) => Some(of_schema(schema, format)?),
            ResponseFormat::Regex(regex) => Some(Grammar::regex(regex)),
        },
    };
    if conversation.tools.is_empty() || conversation.tool_choice == ToolChoice::None {
        return Ok(answer.map(|grammar| (grammar, format)));
    }
    let is_opened = request.parsing_options.starts_in_tool_calls;
    let tool_use = ToolUse {
        dsml: model.special_token_id(SpecialToken::Dsml),
        is_required: rules.tool_required || conversation.tool_choice == ToolChoice::Required,
        is_opened,
        parallel_calls: match rules.single_tool_call {
            true => ParallelCalls::Forbidden,
            false => ParallelCalls::Allowed,
        },
    };
    let is_strict = conversation.tools.iter().any(|tool| tool.strict == Some(true));
    let is_free = !is_strict && !tool_use.is_required && !rules.single_tool_call;
    if is_free && answer.is_none() {
        return Ok(None);
    }
    let parameters =
        |tool: &ToolDefinition| rules.strict_tools.parameters(&tool.name, &tool.parameters);
    let parameters: Vec<_> = conversation.tools.iter().map(parameters).collect();
    let tools = conversation.tools.iter().zip(&parameters).map(|(definition, parameters)| Tool {
        name: &definition.name,
        parameters,
        is_strict: definition.strict == Some(true),
    });
    let tools: Vec<_> = tools.collect();
    let grammar = Grammar::tool_calls(&tools, &tool_use, answer.as_ref());
    let param = if answer.is_some() { format } else { TOOLS };
    Ok(Some((grammar.map_err(|error| refused(param, &error))?, param)))
}

fn of_schema(schema: &Value, format: &'static str) -> Result<Grammar, Error> {
    Grammar::json_schema(schema).map_err(|error| refused(format, &error))
}

fn refused(param: &'static str, error: &grammar::Error) -> Error {
    Invalid::unsupported(param, &format!("cannot be enforced: {error}")).into()
}
