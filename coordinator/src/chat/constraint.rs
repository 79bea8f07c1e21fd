//! What an answer must look like, as a grammar: from `response_format`, strict tools and a forced tool choice.

use std::sync::Arc;

use deepseek_recipe::request::ConversationRequest;

use super::Error;
use super::model::Model;
use crate::engine::request::Constraint;

/// What a request asks of its answer beyond what its conversation says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// The answer must call a tool: forced by grammar, so in thinking mode, too.
    pub(super) tool_required: bool,
    /// At most one tool call.
    pub(super) single_tool_call: bool,
    /// `response_format` of type `grammar`, in llguidance's Lark dialect.
    pub(super) grammar: Option<String>,
}

/// The grammar of the answer to `request`, or `None` when it is free.
pub(super) fn constraint(
    _model: &Model,
    _request: &ConversationRequest,
    _rules: &Rules,
) -> Result<Option<Arc<Constraint>>, Error> {
    Ok(None)
}
