//! Streams of chat completions, timed.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A client of one model.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
    model: String,
}

/// When the parts of one streamed answer came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    /// The request was sent.
    pub(crate) sent: Instant,
    /// The first token came.
    pub(crate) first: Instant,
    /// The last token came.
    pub(crate) last: Instant,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Tokens generated.
    pub(crate) completion_tokens: u32,
}

impl Client {
    /// A client for the API at `url`, which ends in `/v1`.
    pub(crate) fn new(url: &str, key: &str, model: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().build()?;
        Ok(Self { http, url: url.to_owned(), key: key.to_owned(), model: model.to_owned() })
    }

    /// Streams one answer of exactly `tokens` tokens.
    pub(crate) async fn stream(&self, prompt: &str, tokens: u32) -> anyhow::Result<Timed> {
        let request = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let url = format!("{}/chat/completions", self.url);
        let sent = Instant::now();
        let mut response = self.http.post(url).bearer_auth(&self.key).json(&request).send().await?;
        if !response.status().is_success() {
            bail!("the server refuses: {}", response.text().await?);
        }
        let mut text = Vec::new();
        let (mut first, mut last) = (None, sent);
        while let Some(bytes) = response.chunk().await? {
            // The opening event carries the role only; tokens begin with the second one.
            text.extend_from_slice(&bytes);
            if first.is_some() || has_token(&text) {
                last = Instant::now();
                first.get_or_insert(last);
            }
        }
        let usage = usage(&String::from_utf8(text)?)?;
        let count = |name: &str| {
            let tokens = usage[name].as_u64().and_then(|count| u32::try_from(count).ok());
            tokens.with_context(|| format!("usage has no {name}: {usage}"))
        };
        let completion_tokens = count("completion_tokens")?;
        ensure!(completion_tokens == tokens, "{completion_tokens} tokens came instead of {tokens}");
        let first = first.context("no token came")?;
        Ok(Timed { sent, first, last, prompt_tokens: count("prompt_tokens")?, completion_tokens })
    }
}

/// Whether an event with a token is among them.
fn has_token(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).split("data: ").filter_map(parse).any(|event| {
        let delta = &event["choices"][0]["delta"];
        ["content", "reasoning_content"]
            .iter()
            .any(|field| delta[field].as_str().is_some_and(|piece| !piece.is_empty()))
            || !event["choices"][0]["finish_reason"].is_null()
    })
}

/// The `usage` object of the stream's last chunk.
fn usage(text: &str) -> anyhow::Result<Value> {
    ensure!(text.trim_end().ends_with("[DONE]"), "the stream ended early: {text}");
    let mut events: Vec<_> = text.split("data: ").filter_map(parse).collect();
    events.pop().map(|mut event| event["usage"].take()).context("the stream was empty")
}

fn parse(event: &str) -> Option<Value> {
    serde_json::from_str(event.trim()).ok()
}
