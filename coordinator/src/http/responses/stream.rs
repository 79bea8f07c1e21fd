//! A response as a stream of named, numbered events.

use async_stream::stream;
use axum::response::Response;
use axum::response::sse::Event;
use deepseek_recipe::openai::responses::response::{ResponsesResponse, ResponsesStreamEvent};
use deepseek_recipe::response::{Accumulate as _, ProtocolResponse as _};
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};

use super::{Destiny, object, with_failure};
use crate::chat;
use crate::chat::answer::Answer;
use crate::chat::responses::Responses;
use crate::http::error::Report;
use crate::http::{Error, sse};

/// Name of the event that ends a response which came to nothing more.
const FAILED: &str = "response.failed";
/// Name of the event that ends a stream which did not come to a response.
const ERROR: &str = "error";

/// The answer as server-sent events. It ends with `response.completed`, `response.incomplete` or `response.failed`.
pub(super) fn response(answer: Answer<Responses>, destiny: Destiny) -> Response {
    sse::respond(
        events(answer, destiny)
            .map(|(name, data)| Ok(Event::default().event(name).data(data.to_string()))),
    )
}

fn events(
    answer: impl Stream<Item = Result<ResponsesStreamEvent, chat::Error>> + Send,
    destiny: Destiny,
) -> impl Stream<Item = (&'static str, Value)> + Send {
    stream! {
        let mut answer = std::pin::pin!(answer);
        let mut so_far = None;
        let mut sequence_number = 0;
        while let Some(event) = answer.next().await {
            let event = event.map_err(Error::from);
            match event.and_then(|event| write(event, &mut so_far, &destiny)) {
                Ok(event) => yield event,
                Err(error) => {
                    yield failed(so_far, sequence_number, &error, &destiny);
                    return;
                }
            }
            sequence_number += 1;
        }
    }
}

/// An event's name and data. A response that is over is kept before its client hears so.
fn write(
    mut event: ResponsesStreamEvent,
    so_far: &mut Option<ResponsesResponse>,
    destiny: &Destiny,
) -> Result<(&'static str, Value), Error> {
    if let Some(response) = response_of(&mut event) {
        destiny.settings.stamp(response);
    }
    let name = ResponsesResponse::sse_event_name(&event).unwrap_or_default();
    let data = serde_json::to_value(&event).map_err(chat::internal("writing an event"))?;
    match (&event, so_far.as_mut()) {
        (ResponsesStreamEvent::Created { response, .. }, _) => *so_far = Some(response.clone()),
        (ResponsesStreamEvent::Completed { .. } | ResponsesStreamEvent::Incomplete { .. }, _) => {
            destiny.keep(&data["response"]);
        }
        (_, Some(so_far)) => so_far.accumulate(event),
        (_, None) => {}
    }
    Ok((name, data))
}

/// The last event of a response that came to nothing more.
fn failed(
    so_far: Option<ResponsesResponse>,
    sequence_number: usize,
    error: &Error,
    destiny: &Destiny,
) -> (&'static str, Value) {
    let Some(response) = so_far.and_then(|response| object(&response).ok()) else {
        let Report { code, message, param, .. } = error.report();
        let event = json!({
            "type": ERROR, "code": code, "message": message, "param": param,
            "sequence_number": sequence_number,
        });
        return (ERROR, event);
    };
    let response = with_failure(response, error);
    destiny.keep(&response);
    let event = json!({ "type": FAILED, "response": response, "sequence_number": sequence_number });
    (FAILED, event)
}

/// The whole response that an event carries.
fn response_of(event: &mut ResponsesStreamEvent) -> Option<&mut ResponsesResponse> {
    use ResponsesStreamEvent as Event;
    let (Event::Created { response, .. }
    | Event::InProgress { response, .. }
    | Event::Completed { response, .. }
    | Event::Incomplete { response, .. }) = event
    else {
        return None;
    };
    Some(response)
}
