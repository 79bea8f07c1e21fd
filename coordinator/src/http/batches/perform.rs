//! One request of a batch, answered as its route would.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::auth::{Account, Accounts, Lease};
use crate::batches::Endpoint;
use crate::batches::perform::{Answered, Call, Perform, Performed};
use crate::chat::completion::CompletionRequest;
use crate::chat::invalid::Invalid;
use crate::chat::protocol::{Protocol, Request};
use crate::chat::request::ChatRequest;
use crate::chat::responses::store::{Owner, Store};
use crate::chat::responses::{self, Responses};
use crate::chat::usage::Chain;
use crate::chat::{self, Chat, internal};
use crate::engine::request::GenerateError;
use crate::http::Error;
use crate::http::error::{Dialect as _, OpenAi};
use crate::http::responses::resolve;

/// Pause where an error does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// The routes that batches may ask for.
#[derive(Clone, Debug)]
pub(in crate::http) struct Performer {
    chat: Arc<Chat>,
    accounts: Accounts,
    responses: Arc<Store>,
    /// One looks up its key at a time: those that somebody waits for need the database's connections, too.
    turn: Arc<Semaphore>,
}

// === impl Performer ===

impl Performer {
    /// Answers with these models, for these keys.
    pub(super) fn new(chat: Arc<Chat>, accounts: Accounts, responses: Arc<Store>) -> Self {
        Self { chat, accounts, responses, turn: Arc::new(Semaphore::new(1)) }
    }

    async fn answer(&self, call: Call) -> Result<Answered, Error> {
        let account = {
            // It is never closed.
            let _turn = self.turn.acquire().await;
            self.accounts.keys().account(call.owner).await?
        };
        let (lease, tab) = self.accounts.admit_batch(&account)?;
        let body = self.route(call, &account, lease).await;
        // Only now: what was generated in vain is on it, too.
        let usage = tab.take();
        match body {
            Ok(body) => Ok(Answered { status: 200, body, usage }),
            Err(error) => refused(error, usage),
        }
    }

    async fn route(&self, call: Call, account: &Account, lease: Lease) -> Result<Value, Error> {
        let Call { endpoint, body, .. } = call;
        match endpoint {
            Endpoint::ChatCompletions => {
                let request = ChatRequest::from_fields(body).map_err(chat::Error::from)?;
                self.collect(request.paid_by(lease), |_| {}).await
            }
            Endpoint::Completions => {
                let request = Request::<CompletionRequest>::from_fields(body);
                self.collect(request.map_err(chat::Error::from)?.paid_by(lease), |_| {}).await
            }
            Endpoint::Responses => {
                let call = responses::Call::from_fields(body).map_err(chat::Error::from)?;
                let call = resolve(&self.responses, Owner::from(account), call)?;
                let settings = call.settings.clone();
                if settings.is_background() {
                    let what = "is what a batch does anyway; leave it out";
                    return Err(chat::Error::from(Invalid::unsupported("background", what)).into());
                }
                let (request, _) = call.into_request().map_err(chat::Error::from)?;
                let request: Request<Responses> = request.paid_by(lease);
                self.collect(request, |response| settings.stamp(response)).await
            }
        }
    }

    async fn collect<P: Protocol<Response: Serialize>>(
        &self,
        request: Request<P>,
        stamp: impl FnOnce(&mut P::Response),
    ) -> Result<Value, Error> {
        let answer = Box::pin(self.chat.start(request)).await?;
        let mut response = answer.collect().await?;
        stamp(&mut response);
        Ok(serde_json::to_value(response).map_err(internal("writing an answer"))?)
    }
}

impl Perform for Performer {
    fn perform(&self, call: Call) -> BoxFuture<'_, Performed> {
        // One request must not take all batches with it.
        let answered = AssertUnwindSafe(self.answer(call)).catch_unwind();
        Box::pin(async {
            match answered.await.unwrap_or(Err(Error::Panicked)) {
                Ok(answered) => Performed::Answered(answered),
                Err(error) => judge(&error),
            }
        })
    }
}

/// A refusal that would be the same again is an answer, with what was generated before it.
fn refused(error: Error, usage: Vec<crate::auth::ledger::Usage>) -> Result<Answered, Error> {
    let report = error.report();
    if report.is_overload || report.status.is_server_error() {
        return Err(error);
    }
    Ok(Answered { status: report.status.as_u16(), body: OpenAi::body(&report), usage })
}

/// Whether an error would be the same again.
fn judge(error: &Error) -> Performed {
    let report = error.report();
    let status = report.status;
    let answered =
        Answered { status: status.as_u16(), body: OpenAi::body(&report), usage: Vec::new() };
    let is_lost = matches!(error, Error::Chat(chat::Error::Generate(GenerateError::GroupLost(_))));
    let is_away = matches!(error, Error::Keys(_)) || report.is_overload && !is_lost;
    if is_away {
        return Performed::Later(report.retry_after.unwrap_or(RETRY_AFTER_DEFAULT));
    }
    if status.is_server_error() {
        tracing::error!(error.type = report.code, error = %Chain(error), "a batch's request failed");
        return Performed::Failed(answered);
    }
    Performed::Answered(answered)
}
