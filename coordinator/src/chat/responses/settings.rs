//! What concerns a response as an object: whether it is kept, what it continues, how it is labelled.

use deepseek_recipe::openai::responses::response::ResponsesResponse;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::chat::invalid::{self, Invalid, InvalidCode};

/// The fields, in the order of their description.
const FIELDS: [&str; 14] = [
    "store",
    "background",
    "previous_response_id",
    "metadata",
    "parallel_tool_calls",
    "include",
    "truncation",
    "safety_identifier",
    "prompt_cache_key",
    // Without effect: who pays, what is cached, how a stream is padded, and how often tools of the server may run.
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "stream_options",
    "max_tool_calls",
];

/// Most labels of one response, as in OpenAI's API.
const METADATA_MAX: usize = 16;
/// Asks for what reasoning items always carry.
const INCLUDE_REASONING: &str = "reasoning.encrypted_content";
/// Asks for log probabilities.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// What a request says of its response as an object.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    store: Option<bool>,
    background: Option<bool>,
    previous_response_id: Option<String>,
    metadata: Option<Map<String, Value>>,
    parallel_tool_calls: Option<bool>,
    include: Option<Vec<String>>,
    truncation: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
}

// === impl Settings ===

impl Settings {
    /// Takes the settings out of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub(super) fn take(fields: &mut Map<String, Value>) -> Result<Self, Invalid> {
        let own = FIELDS.into_iter().filter_map(|name| fields.shift_remove_entry(name)).collect();
        let settings: Self = invalid::typed(own)?;
        settings.check(fields)?;
        Ok(settings)
    }

    fn check(&self, others: &Map<String, Value>) -> Result<(), Invalid> {
        let wrong = |param, what: &str| Err(Invalid::new(InvalidCode::Value, param, what));
        if self.is_background() && !self.is_stored() {
            return wrong("background", "needs `store`, for nobody could fetch the response");
        }
        if self.is_background() && others.get("stream") == Some(&Value::Bool(true)) {
            let what = "cannot be streamed by this server; fetch it until its status is final";
            return Err(Invalid::unsupported("background", what));
        }
        if self.truncation.as_ref().is_some_and(|truncation| truncation != "disabled") {
            let what = "can only be 'disabled': this server drops nothing from a conversation";
            return Err(Invalid::unsupported("truncation", what));
        }
        for include in self.include.iter().flatten() {
            if ![INCLUDE_REASONING, INCLUDE_LOGPROBS].contains(&include.as_str()) {
                let what = format!("has {include:?}, which this server does not have");
                return Err(Invalid::unsupported("include", &what));
            }
        }
        let metadata = self.metadata.as_ref();
        if metadata.is_some_and(|metadata| metadata.len() > METADATA_MAX) {
            return wrong("metadata", &format!("has more than {METADATA_MAX} entries"));
        }
        if metadata.is_some_and(|metadata| metadata.values().any(|value| !value.is_string())) {
            return wrong("metadata", "must have strings as values");
        }
        Ok(())
    }

    /// Whether the response can be fetched later.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.store.unwrap_or(true)
    }

    /// Whether the response is made without its client.
    #[must_use]
    pub fn is_background(&self) -> bool {
        self.background == Some(true)
    }

    /// Id of the response that this one continues.
    #[must_use]
    pub fn previous_response_id(&self) -> Option<&str> {
        self.previous_response_id.as_deref()
    }

    pub(super) fn parallel_tool_calls(&self) -> bool {
        self.parallel_tool_calls.unwrap_or(true)
    }

    pub(super) fn includes_logprobs(&self) -> bool {
        self.include.iter().flatten().any(|include| include == INCLUDE_LOGPROBS)
    }

    /// Makes a response say what was asked of it.
    pub fn stamp(&self, response: &mut ResponsesResponse) {
        response.store = self.is_stored();
        response.background = self.is_background();
        response.previous_response_id.clone_from(&self.previous_response_id);
        response.metadata = self.metadata.clone().unwrap_or_default();
        response.parallel_tool_calls = self.parallel_tool_calls();
        response.safety_identifier.clone_from(&self.safety_identifier);
        response.prompt_cache_key.clone_from(&self.prompt_cache_key);
    }
}
