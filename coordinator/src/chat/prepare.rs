//! A request becomes a prompt and what to sample from it.

use std::sync::Arc;

use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ModelVersion,
};
use deepseek_recipe_encoding::RenderedPrompt;

use super::compat::Compat;
use super::completion::{self, Raw, RawPrompt};
use super::constraint::constraint;
use super::extras::{Extras, N_MAX};
use super::invalid::{Invalid, InvalidCode};
use super::model::Model;
use super::protocol::{Protocol, Request};
use super::{Chat, Error, Served};
use crate::engine::request::Constraint;

/// A request that is rendered, but not yet submitted.
pub(super) struct Prepared {
    pub(super) conversation: ConversationRequest,
    pub(super) prompts: Vec<Prompt>,
    pub(super) constraint: Option<Arc<Constraint>>,
    pub(super) extras: Extras,
}

/// One prompt of a request.
pub(super) struct Prompt {
    pub(super) token_ids: Vec<u32>,
    pub(super) max_tokens: u32,
    /// What the client wants to see before the answer.
    pub(super) echo: Option<String>,
}

/// What the tokens of a sequence are counted against.
struct Room<'a> {
    conversation: &'a ConversationRequest,
    /// Tokens of an answer whose length is not given; `None` for the family's default.
    default: Option<u32>,
    context_length: u32,
    param: &'static str,
}

/// Length of a prompt.
enum PromptTokens {
    AtLeast(usize),
    Exactly(usize),
}

impl Chat {
    /// Checks and converts a request.
    pub(super) fn convert<P: Protocol>(
        &self,
        served: &Served,
        request: Request<P>,
    ) -> Result<(ConversationRequest, Extras), Error> {
        let Request { mut body, mut extras, lease: _ } = request;
        let biased: Vec<u32> = extras.logit_bias.iter().map(|(id, _)| *id).collect();
        served.model.check_tokens("logit_bias", &biased)?;
        if self.compat == Compat::OpenAi {
            body.relax(served.model.default_thinking(), &mut extras)?;
        }
        let conversation =
            body.convert(conversion_options(&served.model)).map_err(conversion_error)?;
        Ok((conversation, extras))
    }

    /// Checks and renders a request.
    pub(super) async fn prepare<P: Protocol>(
        &self,
        served: &Arc<Served>,
        request: Request<P>,
    ) -> Result<Prepared, Error> {
        let (mut conversation, extras) = self.convert(served, request)?;
        let served = Arc::clone(served);
        self.render(move || {
            let room = Room {
                conversation: &conversation,
                default: extras.raw.as_ref().map(|_| completion::DEFAULT_MAX_TOKENS),
                context_length: served.context_length(),
                param: P::PROMPT,
            };
            let prompts = match &extras.raw {
                None => {
                    let rendered = served.model.render(&conversation.conversation);
                    vec![prompt_of(&served.model, &rendered, &room)?]
                }
                Some(raw) => raw_prompts(&served.model, raw, extras.n, &room)?,
            };
            let constraint = constraint(&served.model, &conversation, &extras.rules, P::FORMAT)?;
            // What is enforced need not be searched for in the text.
            conversation.parsing_options.parse_json_output &= constraint.is_none();
            Ok(Prepared { conversation, prompts, constraint, extras })
        })
        .await
    }
}

fn prompt_of(model: &Model, rendered: &RenderedPrompt, room: &Room<'_>) -> Result<Prompt, Error> {
    // Counting the tokens of megabytes takes long; that they are too many can be plain before.
    room.max_tokens(PromptTokens::AtLeast(model.tokens_min(rendered)))?;
    let token_ids = model.encode(rendered)?;
    let max_tokens = room.max_tokens(PromptTokens::Exactly(token_ids.len()))?;
    Ok(Prompt { token_ids, max_tokens, echo: None })
}

fn raw_prompts(model: &Model, raw: &Raw, n: u32, room: &Room<'_>) -> Result<Vec<Prompt>, Error> {
    let num_prompts = u32::try_from(raw.prompts.len()).unwrap_or(u32::MAX);
    if num_prompts.checked_mul(n).is_none_or(|choices| choices > N_MAX) {
        let what = format!("of {num_prompts} prompts make more than {N_MAX} answers; send fewer");
        return Err(Invalid::new(InvalidCode::Value, "n", &what).into());
    }
    let prompt = |prompt: &RawPrompt| {
        let mut found = match prompt {
            RawPrompt::Text(text) => prompt_of(model, &model.render_text(text, raw.begin), room)?,
            RawPrompt::Tokens(token_ids) => {
                model.check_tokens(room.param, token_ids)?;
                let max_tokens = room.max_tokens(PromptTokens::Exactly(token_ids.len()))?;
                Prompt { token_ids: token_ids.clone(), max_tokens, echo: None }
            }
        };
        if found.token_ids.is_empty() {
            return Err(Invalid::new(InvalidCode::Value, room.param, "has no tokens").into());
        }
        if raw.echo {
            found.echo = Some(match prompt {
                RawPrompt::Text(text) => text.clone(),
                RawPrompt::Tokens(token_ids) => model.decode(token_ids)?,
            });
        }
        Ok(found)
    };
    raw.prompts.iter().map(prompt).collect()
}

fn conversion_options(model: &Model) -> ConversionOptions {
    // The bound on `max_tokens` is the model's context, checked once the prompt is counted.
    ConversionOptions::new()
        .with_model_versions_by_name([(model.id(), ModelVersion::DeepseekV4Pro)])
        .with_default_thinking_mode(model.default_thinking())
        .with_thinking_max_tokens_upper_bound(u32::MAX)
        .with_non_thinking_max_tokens_upper_bound(u32::MAX)
}

fn conversion_error(error: ConversionError) -> Error {
    match error {
        ConversionError::BadRequest { detail } => Invalid::from_detail(detail).into(),
        ConversionError::Internal { detail } => {
            Error::Internal { doing: "converting the request", source: detail.into() }
        }
    }
}

// === impl Room ===

impl Room<'_> {
    /// Tokens that the answer may have: as asked for, else the default cut to what the context leaves.
    fn max_tokens(&self, prompt_tokens: PromptTokens) -> Result<u32, Error> {
        let Self { conversation, default, context_length, param } = *self;
        let requested = conversation.inference_options.max_tokens;
        let max_tokens = requested.unwrap_or(1);
        let (prompt_tokens, is_exact) = match prompt_tokens {
            PromptTokens::AtLeast(tokens) => (tokens, false),
            PromptTokens::Exactly(tokens) => (tokens, true),
        };
        let too_long =
            || Error::ContextLength { param, context_length, prompt_tokens, is_exact, max_tokens };
        let prompt = u32::try_from(prompt_tokens).map_err(|_| too_long())?;
        if prompt.checked_add(max_tokens).is_none_or(|total| total > context_length) {
            return Err(too_long());
        }
        match (requested, default) {
            (None, Some(default)) => Ok(default.min(context_length - prompt)),
            _ => conversation.resolve_max_tokens(prompt, context_length).map_err(|_| too_long()),
        }
    }
}
