//! `/v1/responses`, OpenAI's Responses.
//!
//! - `POST /v1/responses` answers, as a stream, as a whole, or in the background;
//! - `POST /v1/responses/input_tokens` counts the tokens of the prompt that a request would become;
//! - `GET` and `DELETE /v1/responses/{id}`, `GET /v1/responses/{id}/input_items` and `POST /v1/responses/{id}/cancel`
//!   concern a response that is kept; see [`store`](crate::chat::responses::store).
//!
//! A response is kept once it is over; one whose client hung up is not, unless it was begun in the background. In the
//! background means: until it is over, or cancelled, or deleted, or the server stops.

mod list;
mod stream;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use deepseek_recipe::openai::responses::response::{ResponsesResponse, ResponsesStreamEvent};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};

use super::{Context, Error, body};
use crate::auth::{Account, Lease};
use crate::chat;
use crate::chat::answer::Answer;
use crate::chat::internal;
use crate::chat::invalid::Invalid;
use crate::chat::responses::settings::Settings;
use crate::chat::responses::store::{Kept, Owner, Store};
use crate::chat::responses::{Call, Responses};
use list::Page;

/// Parameters of a query, as they were sent.
type Parameters = Query<Vec<(String, String)>>;

/// What becomes of a response beside being sent.
struct Destiny {
    settings: Settings,
    input: Vec<Value>,
    owner: Owner,
    store: Arc<Store>,
}

/// Answers a request.
pub async fn create(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let owner = Owner::from(&account);
    let bytes = body::read(&headers, body, &context.limits).await?;
    let call = read(&context.responses, owner, &bytes)?;
    drop(bytes);
    let settings = call.settings.clone();
    let (request, input) = call.into_request().map_err(chat::Error::from)?;
    request.record_on_span();
    let answer = context.chat.start(request.paid_by(lease)).await?;
    let destiny = Destiny { settings, input, owner, store: context.responses };
    if destiny.settings.is_background() {
        begin(answer, destiny).await
    } else if answer.is_stream() {
        Ok(stream::response(answer, destiny))
    } else {
        let mut response = answer.collect().await?;
        destiny.settings.stamp(&mut response);
        let response = object(&response)?;
        destiny.keep(&response);
        Ok(Json(response).into_response())
    }
}

/// Tokens of the prompt that a request would become.
pub async fn count_tokens(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bytes = body::read(&headers, body, &context.limits).await?;
    let call = read(&context.responses, Owner::from(&account), &bytes)?;
    drop(bytes);
    let (request, _) = call.into_request().map_err(chat::Error::from)?;
    let input_tokens = context.chat.tokenize(request).await?.len();
    let count = json!({ "object": "response.input_tokens", "input_tokens": input_tokens });
    Ok(Json(count).into_response())
}

/// A request with the conversation that it continues.
fn read(store: &Store, owner: Owner, body: &[u8]) -> Result<Call, Error> {
    resolve(store, owner, Call::from_slice(body).map_err(chat::Error::from)?)
}

/// Adds what a request only names: the response that it continues, and items of earlier ones.
pub(super) fn resolve(store: &Store, owner: Owner, mut call: Call) -> Result<Call, Error> {
    if let Some(previous) = call.settings.previous_response_id() {
        let history = store.history(owner, previous)?;
        call.continues(history);
    }
    call.resolve(|id| store.output_item(owner, id)).map_err(chat::Error::from)?;
    Ok(call)
}

/// Leaves an answer to a task, and says that it is on its way.
async fn begin(mut answer: Answer<Responses>, destiny: Destiny) -> Result<Response, Error> {
    // The first event needs nothing of the engine.
    let Some(ResponsesStreamEvent::Created { mut response, .. }) =
        answer.next().await.transpose()?
    else {
        let error = internal("beginning a response")("its first event is another");
        return Err(error.into());
    };
    destiny.settings.stamp(&mut response);
    let begun = object(&response)?;
    let Destiny { settings, input, owner, store } = destiny;
    let id = answer.id().to_owned();
    let kept = Kept::new(&begun, &input);
    let unfinished = begun.clone();
    store.spawn(owner, id, kept, async move {
        // A panic must not leave a response that is never over.
        let whole = AssertUnwindSafe(answer.collect()).catch_unwind().await;
        let response = whole.unwrap_or(Err(panicked())).map_err(Error::from);
        let response = response.and_then(|mut response| {
            settings.stamp(&mut response);
            object(&response)
        });
        response.unwrap_or_else(|error| with_failure(unfinished, &error))
    })?;
    Ok(Json(begun).into_response())
}

fn panicked() -> chat::Error {
    internal("making a response in the background")("a task panicked")
}

/// A kept response.
pub async fn retrieve(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
    Query(parameters): Parameters,
) -> Result<Response, Error> {
    if parameters.iter().any(|(name, value)| name == "stream" && value == "true") {
        let what = "is not supported by this server for kept responses; fetch them whole";
        return Err(chat::Error::from(Invalid::unsupported("stream", what)).into());
    }
    Ok(as_json(context.responses.get(Owner::from(&account), &id)?))
}

/// Forgets a response.
pub async fn delete(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    context.responses.delete(Owner::from(&account), &id)?;
    let deleted = json!({ "id": id, "object": "response", "deleted": true });
    Ok(Json(deleted).into_response())
}

/// Stops a response that is made in the background.
pub async fn cancel(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    Ok(as_json(context.responses.cancel(Owner::from(&account), &id)?))
}

/// The items of the conversation that a response answers, page by page.
pub async fn input_items(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
    Query(parameters): Parameters,
) -> Result<Response, Error> {
    let page = Page::read(&parameters).map_err(chat::Error::from)?;
    let items = context.responses.get(Owner::from(&account), &id)?.input_items();
    Ok(Json(page.of(items).map_err(chat::Error::from)?).into_response())
}

fn as_json(kept: Kept) -> Response {
    ([(CONTENT_TYPE, "application/json")], kept.response).into_response()
}

fn object(response: &ResponsesResponse) -> Result<Value, Error> {
    Ok(serde_json::to_value(response).map_err(internal("writing a response"))?)
}

/// A response that came to nothing more.
fn with_failure(mut response: Value, error: &Error) -> Value {
    let report = error.report();
    response["status"] = "failed".into();
    response["error"] = json!({ "code": "server_error", "message": report.message });
    response
}

// === impl Destiny ===

impl Destiny {
    /// Keeps a response that is over, if it is wanted.
    fn keep(&self, response: &Value) {
        if self.settings.is_stored()
            && let Some(id) = response["id"].as_str()
        {
            self.store.keep(self.owner, id.to_owned(), Kept::new(response, &self.input));
        }
    }
}
