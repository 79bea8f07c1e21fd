//! Whose API the server keeps to where OpenAI's and DeepSeek's differ.
//!
//! | | `openai` (default) | `deepseek` |
//! |---|---|---|
//! | `temperature`, `top_p` while thinking | act; left out: 1, and 1, or 0.95 with tools | fixed at 1, and 1, or 0.95 with tools |
//! | `presence_penalty`, `frequency_penalty` | act | checked, then ignored |
//! | `n` | 1 to 16 | 1 |
//! | `tool_choice` required or named while thinking | forced by grammar | refused |
//! | usage of a stream with `include_usage` | in a chunk of its own, with `"choices": []` | on the last chunk |
//!
//! Everything else is the same in both, also what only one of the two knows: `top_k`, `min_p`, `logit_bias`,
//! `parallel_tool_calls`, grammars.

use deepseek_recipe::openai::chat_completion::request::{
    ChatCompletionRequest, ChatCompletionToolChoiceOption, RequestReasoningEffort, ThinkingType,
};

use super::extras::Extras;
use super::invalid::{Invalid, InvalidCode};

/// Whose API the server keeps to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// OpenAI's: what a field says is done.
    #[default]
    OpenAi,
    /// DeepSeek's own: as deepseek-recipe converts it.
    DeepSeek,
}

/// Takes out of a chat completion what deepseek-recipe would drop or refuse, but this server does.
pub(super) fn relax(
    body: &mut ChatCompletionRequest,
    default_thinking: bool,
    extras: &mut Extras,
) -> Result<(), Invalid> {
    // Ranges are still checked by conversion.
    extras.temperature = body.temperature;
    extras.top_p = body.top_p;
    extras.presence_penalty = body.presence_penalty.unwrap_or(0.0);
    extras.frequency_penalty = body.frequency_penalty.unwrap_or(0.0);
    extras.n = body.n.take().map_or(1, u32::from);
    let name = match &body.tool_choice {
        Some(ChatCompletionToolChoiceOption::Required) => None,
        Some(ChatCompletionToolChoiceOption::Named { function, .. }) => Some(function.name.clone()),
        Some(ChatCompletionToolChoiceOption::None | ChatCompletionToolChoiceOption::Auto)
        | None => return Ok(()),
    };
    let Some(tools) = body.tools.as_mut().filter(|tools| !tools.is_empty()) else {
        let what = "asks for a tool, but `tools` has none";
        return Err(Invalid::new(InvalidCode::Value, "tool_choice", what));
    };
    if let Some(name) = &name
        && !tools.iter().any(|tool| tool.function.name == *name)
    {
        let what = format!("names the function {name:?}, which is not in `tools`");
        return Err(Invalid::new(InvalidCode::Value, "tool_choice", &what));
    }
    if !thinks(body.thinking.as_ref().map(|it| it.r#type), body.reasoning_effort, default_thinking)
    {
        // Without reasoning before it, the prompt itself opens the call.
        return Ok(());
    }
    if let Some(name) = name {
        tools.retain(|tool| tool.function.name == name);
    }
    body.tool_choice = None;
    extras.rules.tool_required = true;
    Ok(())
}

/// Whether a request thinks, as conversion will decide.
pub(super) fn thinks(
    thinking: Option<ThinkingType>,
    effort: Option<RequestReasoningEffort>,
    default_thinking: bool,
) -> bool {
    match (thinking, effort) {
        (Some(ThinkingType::Enabled), _) => true,
        (Some(ThinkingType::Disabled), _) | (None, Some(RequestReasoningEffort::None)) => false,
        (None, Some(_)) => true,
        (None, None) => default_thinking,
    }
}
