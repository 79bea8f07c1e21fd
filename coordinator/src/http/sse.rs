//! An answer as server-sent events, or as a whole.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use deepseek_recipe::response::ProtocolResponse as _;
use futures::{Stream, StreamExt as _, stream};
use serde::Serialize;

use super::Error;
use super::error::Dialect;
use crate::chat::answer::Answer;
use crate::chat::protocol::{Chunk, Protocol, Request};
use crate::chat::{self, Chat, internal};

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Type of a stream of events, with the only encoding that it may have.
const CONTENT_TYPE_SSE: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// The response that streams an answer of protocol `P`, with errors as `D` has them. Dropping it cancels the sequence.
pub fn response<P: Protocol, D: Dialect>(
    chunks: impl Stream<Item = Result<Chunk<P>, chat::Error>> + Send + 'static,
) -> Response {
    respond(events::<P, D>(chunks))
}

/// Answers a request of protocol `P`, as a stream or as a whole, with errors as `D` has them.
///
/// # Errors
/// See [`chat::Error`].
pub(super) async fn answer<P: Protocol, D: Dialect>(
    chat: &Chat,
    request: Request<P>,
) -> Result<Response, Error> {
    request.record_on_span();
    let answer = chat.start(request).await?;
    if answer.is_stream() {
        Ok(response::<P, D>(chunks(answer)))
    } else {
        Ok(Json(answer.collect().await?).into_response())
    }
}

/// The response that streams events.
pub(super) fn respond(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, CONTENT_TYPE_SSE);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The chunks of an answer, with usage in one of its own where the client wants that.
pub fn chunks<P: Protocol>(
    answer: Answer<P>,
) -> impl Stream<Item = Result<Chunk<P>, chat::Error>> + Send + 'static {
    let usage_apart = answer.has_usage_apart();
    answer.flat_map(move |mut chunk| {
        let usage = chunk.as_mut().ok().filter(|_| usage_apart).and_then(P::split_usage);
        stream::iter([Some(chunk), usage.map(Ok)].into_iter().flatten())
    })
}

/// Ends with the protocol's own mark after a finish, with an error event otherwise.
fn events<P: Protocol, D: Dialect>(
    chunks: impl Stream<Item = Result<Chunk<P>, chat::Error>> + Send,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    async_stream::stream! {
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            let event = chunk.map_err(Error::from).and_then(|chunk| {
                event(P::Response::sse_event_name(&chunk), &chunk)
            });
            match event {
                Ok(event) => yield Ok(event),
                Err(error) => {
                    yield Ok(error_event::<D>(&error));
                    return;
                }
            }
        }
        if let Some(done) = P::Response::sse_done_data() {
            yield Ok(Event::default().data(done));
        }
    }
}

fn event(name: Option<&'static str>, data: &impl Serialize) -> Result<Event, Error> {
    let event = name.map_or_else(Event::default, |name| Event::default().event(name));
    Ok(event.json_data(data).map_err(internal("writing an event"))?)
}

fn error_event<D: Dialect>(error: &Error) -> Event {
    let (name, data) = D::event(&error.report());
    let event = name.map_or_else(Event::default, |name| Event::default().event(name));
    event.data(data.to_string())
}
