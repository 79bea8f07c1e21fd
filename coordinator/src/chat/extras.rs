//! What a request may ask for beyond what deepseek-recipe converts.

use std::collections::BTreeMap;

use deepseek_recipe::request::InferenceOptions;
use rand::Rng as _;
use serde_json::{Map, Value};

use super::completion::Raw;
use super::constraint::Rules;
use super::invalid::{Invalid, InvalidCode};
use crate::engine::request::SamplingParams;

/// Most answers to one request, over all its prompts.
pub const N_MAX: u32 = 16;
/// Most tokens that one request may bias.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most that a logit may be raised or lowered.
const BIAS_MAX: f64 = 100.0;

/// Generate up to `max_tokens` even past the end of the answer; load generators use it.
const IGNORE_EOS: &str = "ignore_eos";

/// What a request asks for beyond its protocol's own fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Extras {
    /// Whether the end-of-answer token does not end the answer.
    pub ignore_eos: bool,
    /// Answers to generate, 1..=[`N_MAX`].
    pub n: u32,
    /// Temperature that is meant also where conversion fixes it.
    pub temperature: Option<f32>,
    /// `top_p` that is meant also where conversion fixes it.
    pub top_p: Option<f32>,
    /// Draw among this many most likely tokens; 0 means off.
    pub top_k: u32,
    /// Draw among tokens at least this share as likely as the most likely one; 0 means off.
    pub min_p: f32,
    /// -2..=2; 0 means off.
    pub presence_penalty: f32,
    /// -2..=2; 0 means off.
    pub frequency_penalty: f32,
    /// What is added to the logits of tokens, by ascending id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Prompts in place of the conversation.
    pub raw: Option<Raw>,
    /// What the answer must be, beyond what conversion says.
    pub(super) rules: Rules,
}

// === impl Extras ===

impl Default for Extras {
    /// Nothing beyond the protocol.
    fn default() -> Self {
        Self {
            ignore_eos: false,
            n: 1,
            temperature: None,
            top_p: None,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            raw: None,
            rules: Rules::default(),
        }
    }
}

impl Extras {
    /// Takes the fields that no protocol has out of a body.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn take(fields: &mut Map<String, Value>) -> Result<Self, Invalid> {
        Ok(Self {
            ignore_eos: take(fields, IGNORE_EOS, boolean)?.unwrap_or(false),
            top_k: take(fields, "top_k", top_k)?.unwrap_or(0),
            min_p: take(fields, "min_p", min_p)?.unwrap_or(0.0),
            logit_bias: take(fields, "logit_bias", logit_bias)?.unwrap_or_default(),
            ..Self::default()
        })
    }

    /// How the first choice is sampled. Without a seed, each request gets its own.
    pub(super) fn sampling(&self, options: &InferenceOptions) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.or(options.temperature).unwrap_or(1.0),
            top_p: self.top_p.or(options.top_p).unwrap_or(1.0),
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: options.seed.unwrap_or_else(|| rand::rng().random()),
            choice: 0,
            logprobs: options.logprobs,
            num_top_logprobs: options.top_logprobs.unwrap_or(0).into(),
        }
    }
}

pub(super) fn take<T>(
    fields: &mut Map<String, Value>,
    name: &str,
    parse: impl FnOnce(&Value) -> Result<T, (InvalidCode, String)>,
) -> Result<Option<T>, Invalid> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            parse(&value).map(Some).map_err(|(code, what)| Invalid::new(code, name, &what))
        }
    }
}

pub(super) fn boolean(value: &Value) -> Result<bool, (InvalidCode, String)> {
    value.as_bool().ok_or_else(|| (InvalidCode::Type, "must be a boolean".to_owned()))
}

fn top_k(value: &Value) -> Result<u32, (InvalidCode, String)> {
    if !value.is_i64() && !value.is_u64() {
        return Err((InvalidCode::Type, "must be an integer".to_owned()));
    }
    // -1 is how some clients write "off".
    if value.as_i64() == Some(-1) {
        return Ok(0);
    }
    value.as_u64().and_then(|top_k| u32::try_from(top_k).ok()).ok_or_else(|| {
        (InvalidCode::Value, format!("is {value}, but must be at least 1, or 0 or -1 for off"))
    })
}

fn min_p(value: &Value) -> Result<f32, (InvalidCode, String)> {
    let number = value.as_f64();
    let number = number.ok_or_else(|| (InvalidCode::Type, "must be a number".to_owned()))?;
    if (0.0..=1.0).contains(&number) {
        Ok(narrow(number))
    } else {
        Err((InvalidCode::Value, format!("is {value}, but must be within 0..=1")))
    }
}

fn logit_bias(value: &Value) -> Result<Vec<(u32, f32)>, (InvalidCode, String)> {
    let wrong = |what: String| (InvalidCode::Value, what);
    let entries = value.as_object().ok_or_else(|| {
        (InvalidCode::Type, "must be an object of token ids and numbers".to_owned())
    })?;
    if entries.len() > LOGIT_BIAS_MAX {
        return Err(wrong(format!(
            "has {} entries, but at most {LOGIT_BIAS_MAX} are allowed",
            entries.len()
        )));
    }
    let mut by_id = BTreeMap::new();
    for (key, bias) in entries {
        let id = key.parse::<u32>().map_err(|_| wrong(format!("has {key:?}, no token id")))?;
        let number = bias.as_f64().ok_or_else(|| {
            (InvalidCode::Type, format!("has {bias} for token {id}, but must have a number"))
        })?;
        if !(-BIAS_MAX..=BIAS_MAX).contains(&number) {
            return Err(wrong(format!("has {bias} for token {id}, beyond -100..=100")));
        }
        if by_id.insert(id, narrow(number)).is_some() {
            return Err(wrong(format!("has token {id} twice")));
        }
    }
    Ok(by_id.into_iter().collect())
}

#[expect(clippy::cast_possible_truncation, reason = "sampling computes in f32")]
fn narrow(number: f64) -> f32 {
    number as f32
}
