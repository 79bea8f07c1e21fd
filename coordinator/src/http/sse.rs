//! An answer as server-sent events.
//!
//! Usage follows what the client expects: with `stream_options.include_usage`, OpenAI's form (every chunk has
//! `"usage": null`, and one more chunk with `"choices": []` carries it, so that clients which add up chunks count it
//! once); without, DeepSeek's (the chunk with `finish_reason` carries it).

use std::convert::Infallible;
use std::time::Duration;

use async_stream::stream;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use deepseek_recipe::openai::chat_completion::response::ChatCompletionChunk;
use futures::{Stream, StreamExt as _};
use serde::Serialize;

use super::Error;
use crate::chat::answer::Answer;
use crate::chat::internal;

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Data of the last event of a complete answer.
const DONE: &str = "[DONE]";
/// Type of a stream of events, with the only encoding that it may have.
const CONTENT_TYPE_SSE: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// The response that streams an answer. Dropping it cancels the sequence.
pub fn response(answer: Answer) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL).text("keep-alive");
    let mut response = Sse::new(events(answer)).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, CONTENT_TYPE_SSE);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Ends with `[DONE]` after a finish, with an error event otherwise.
fn events(mut answer: Answer) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream! {
        let include_usage = answer.include_usage();
        while let Some(chunk) = answer.next().await {
            match chunk {
                Ok(mut chunk) => {
                    let usage_chunk = include_usage.then(|| split_usage(&mut chunk)).flatten();
                    yield Ok(data(&chunk));
                    if let Some(chunk) = usage_chunk {
                        yield Ok(data(&chunk));
                    }
                }
                Err(error) => {
                    yield Ok(data(&Error::from(error).body()));
                    return;
                }
            }
        }
        yield Ok(Event::default().data(DONE));
    }
}

/// Moves usage from the last chunk into a chunk of its own.
fn split_usage(chunk: &mut ChatCompletionChunk) -> Option<ChatCompletionChunk> {
    let usage = chunk.usage.as_mut()?.take()?;
    Some(ChatCompletionChunk {
        id: chunk.id.clone(),
        object: chunk.object,
        created: chunk.created,
        model: chunk.model.clone(),
        system_fingerprint: chunk.system_fingerprint.clone(),
        choices: Vec::new(),
        usage: Some(Some(usage)),
    })
}

fn data(value: &impl Serialize) -> Event {
    Event::default().json_data(value).unwrap_or_else(|error| {
        // Only a map with keys that are no strings cannot be written, and there is none.
        let error = Error::from(internal("writing an event")(error));
        Event::default().data(serde_json::json!(error.body()).to_string())
    })
}
