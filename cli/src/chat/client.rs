//! The part of the HTTP API that a chat needs.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::sse;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server and the key for it.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// One turn of the conversation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Message {
    /// `system`, `user` or `assistant`.
    pub(super) role: &'static str,
    /// Its text.
    pub(super) content: String,
}

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    decoder: sse::Decoder,
    ready: std::vec::IntoIter<String>,
}

/// A piece of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Text of the answer.
    pub(super) content: String,
    /// Text of the reasoning before it.
    pub(super) reasoning: String,
    /// Set on the last piece that belongs to a choice.
    pub(super) finish_reason: Option<String>,
    /// Tokens generated, reasoning included; on the very last piece.
    pub(super) completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: &'a [Message],
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Thinking {
    r#type: &'static str,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u32,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ApiError,
}

#[derive(Deserialize)]
struct ApiError {
    message: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

// === impl Client ===

impl Client {
    /// A client for the server at `url`.
    pub(super) fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).build()?;
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("--url {url}: expected http://HOST:PORT or https://HOST:PORT");
        }
        Ok(Self { http, url, key })
    }

    /// The model asked for if the server has it, else its first one.
    pub(super) async fn choose_model(&self, wanted: Option<&str>) -> anyhow::Result<String> {
        let response = self.send(self.http.get(format!("{}/v1/models", self.url))).await?;
        let models: Models = response
            .json()
            .await
            .with_context(|| format!("{} does not answer like a chat server", self.url))?;
        let ids: Vec<_> = models.data.into_iter().map(|model| model.id).collect();
        match wanted {
            Some(wanted) if ids.iter().any(|id| id == wanted) => Ok(wanted.to_owned()),
            Some(wanted) => bail!(
                "the server at {} does not serve {wanted}; it serves: {}",
                self.url,
                ids.join(", ")
            ),
            None => ids
                .into_iter()
                .next()
                .ok_or_else(|| anyhow!("the server at {} serves no model", self.url)),
        }
    }

    /// Asks for the next turn of a conversation.
    pub(super) async fn ask(
        &self,
        model: &str,
        messages: &[Message],
        think: Option<bool>,
    ) -> anyhow::Result<Answer> {
        let thinking = think.map(|on| Thinking { r#type: if on { "enabled" } else { "disabled" } });
        let stream_options = StreamOptions { include_usage: true };
        let request = Request { model, messages, stream: true, stream_options, thinking };
        let url = format!("{}/v1/chat/completions", self.url);
        let response = self.send(self.http.post(url).json(&request)).await?;
        let ready = Vec::new().into_iter();
        Ok(Answer { response, decoder: sse::Decoder::default(), ready })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_timeout() => bail!(
                "no server answers at {}; start one with `switchyard up`, or name another with --url",
                self.url
            ),
            Err(error) => return Err(error).context("the request failed"),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = match response.json::<ErrorBody>().await {
            Ok(body) => body.error.message,
            Err(_) => status.to_string(),
        };
        if status == StatusCode::UNAUTHORIZED {
            let hint = if self.key.is_some() { "it is not valid there" } else { "there is none" };
            bail!(
                "the server at {} wants a valid API key and {hint}; pass --api-key or set SWITCHYARD_API_KEY ({said})",
                self.url
            );
        }
        bail!("{said}")
    }
}

// === impl Answer ===

impl Answer {
    /// The next piece; `None` after the answer's regular end.
    ///
    /// # Errors
    /// The server reports an error in the stream, or the stream ends without its end mark.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Piece>> {
        loop {
            if let Some(payload) = self.ready.next() {
                return if payload == "[DONE]" { Ok(None) } else { piece(&payload).map(Some) };
            }
            let bytes = self.response.chunk().await.context("the connection broke")?;
            let Some(bytes) = bytes else { bail!("the server ended the answer early") };
            let payloads = self.decoder.push(&bytes);
            let payloads = payloads.map_err(|_| anyhow!("the server sent an endless line"))?;
            self.ready = payloads.into_iter();
        }
    }
}

fn piece(payload: &str) -> anyhow::Result<Piece> {
    let chunk: Chunk = serde_json::from_str(payload)
        .with_context(|| format!("the server sent an event that is no chunk: {payload}"))?;
    if let Some(error) = chunk.error {
        bail!(error.message);
    }
    let mut piece = Piece {
        completion_tokens: chunk.usage.map(|usage| usage.completion_tokens),
        ..Piece::default()
    };
    if let Some(choice) = chunk.choices.into_iter().next() {
        piece.content = choice.delta.content.unwrap_or_default();
        piece.reasoning = choice.delta.reasoning_content.unwrap_or_default();
        piece.finish_reason = choice.finish_reason;
    }
    Ok(piece)
}
