//! The methods of `switchyard.v1.Inference`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::http::HeaderMap;
use futures::{Stream, StreamExt as _};
use metrics::counter;
use switchyard_proto::inference::inference_server::Inference as InferenceService;
use switchyard_proto::inference::{
    ChatChunk, ChatRequest, ChatResponse, ListModelsRequest, ListModelsResponse, Model,
    TokenizeRequest, TokenizeResponse, tokenize_request,
};
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use super::{Error, request, response};
use crate::auth::failures::{Door, Failure};
use crate::auth::{Account, Accounts, Lease};
use crate::chat::invalid::{Invalid, InvalidCode};
use crate::chat::{self, Chat, Served};
use crate::http::observe::{REQUEST_ID, request_id, request_span};
use crate::http::{bearer, peer};
use crate::metric_definitions as names;

/// Metadata key of the client's key.
const AUTHORIZATION: &str = "authorization";

/// The client API over gRPC. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inference {
    chat: Arc<Chat>,
    accounts: Accounts,
}

/// What is known of whoever calls.
struct Caller {
    headers: HeaderMap,
    peer: Option<SocketAddr>,
}

/// Messages of a streamed answer.
type ChatStream = Pin<Box<dyn Stream<Item = Result<ChatChunk, Status>> + Send>>;

// === impl Inference ===

impl Inference {
    /// Serves `chat` to the holders of `accounts`.
    #[must_use]
    pub fn new(chat: Arc<Chat>, accounts: Accounts) -> Self {
        Self { chat, accounts }
    }

    /// Around every call: request id, span, key, counter.
    async fn call<T>(
        &self,
        method: &'static str,
        caller: Caller,
        answer: impl AsyncFnOnce(Account) -> Result<T, Error>,
    ) -> Result<Response<T>, Status> {
        let Caller { headers, peer } = caller;
        let id = request_id(&headers);
        let span = request_span("grpc.request", &headers);
        span.record("rpc.method", method);
        span.record("request.id", id.to_str().unwrap_or_default());
        let result = async {
            let account = self.authenticate(&headers, peer).await?;
            answer(account).await
        }
        .instrument(span.clone())
        .await
        .map_err(|error| span.in_scope(|| Status::from(error)));
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        counter!(
            names::GRPC_REQUESTS_TOTAL,
            names::METHOD => method,
            names::STATUS => format!("{code:?}"),
        )
        .increment(1);
        let mut response = Response::new(result?);
        if let Ok(id) = id.as_bytes().try_into() {
            response.metadata_mut().insert(REQUEST_ID, id);
        }
        Ok(response)
    }

    async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
    ) -> Result<Account, Error> {
        let header = headers.get(AUTHORIZATION);
        let Some(bearer) = header.and_then(|header| bearer(header.as_bytes())) else {
            self.accounts.failures().note(Door::Grpc, Failure::Missing, peer);
            return Err(Error::MissingKey);
        };
        let authenticate = self.accounts.authenticate_at(Door::Grpc, peer, bearer);
        let account = authenticate.instrument(tracing::info_span!("authenticate")).await?;
        tracing::Span::current().record("key.id", account.key_id().get());
        Ok(account)
    }

    /// Lets a chat begin. It is over when the lease is dropped.
    fn admit(&self, account: &Account) -> Result<Lease, Error> {
        Ok(self.accounts.admit(account)?)
    }

    async fn tokenize_input(&self, request: TokenizeRequest) -> Result<TokenizeResponse, Error> {
        let token_ids = match request.input {
            Some(tokenize_request::Input::Text(text)) => {
                self.chat.tokenize_text(&request.model, text, false).await?
            }
            Some(tokenize_request::Input::Chat(mut chat)) => {
                if chat.model.is_empty() {
                    chat.model = request.model;
                }
                let request = request::convert(*chat, false).map_err(chat::Error::from)?;
                self.chat.tokenize(request).await?
            }
            None => {
                let missing =
                    Invalid::new(InvalidCode::Missing, "input", "is required: set text or chat");
                return Err(chat::Error::from(missing).into());
            }
        };
        Ok(TokenizeResponse { token_ids })
    }
}

#[tonic::async_trait]
impl InferenceService for Inference {
    type ChatStream = ChatStream;

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<ChatStream>, Status> {
        let (caller, message) = Caller::of(request);
        let answer = async |account: Account| {
            let lease = self.admit(&account)?;
            let request = request::convert(message, true).map_err(chat::Error::from)?;
            request.record_on_span();
            let answer = self.chat.start(request.paid_by(lease.clone())).await?;
            let messages = answer.map(move |chunk| {
                let _held = &lease;
                match chunk {
                    Ok(chunk) => Ok(response::chunk(chunk)),
                    Err(error) => Err(Error::from(error).into()),
                }
            });
            Ok(Box::pin(messages) as ChatStream)
        };
        self.call("Chat", caller, answer).await
    }

    async fn complete(
        &self,
        request: Request<ChatRequest>,
    ) -> Result<Response<ChatResponse>, Status> {
        let (caller, message) = Caller::of(request);
        let answer = async |account: Account| {
            let lease = self.admit(&account)?;
            let request = request::convert(message, false).map_err(chat::Error::from)?;
            request.record_on_span();
            let answer = self.chat.start(request.paid_by(lease)).await?;
            Ok(response::whole(answer.collect().await?))
        };
        self.call("Complete", caller, answer).await
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let (caller, message) = Caller::of(request);
        self.call("Tokenize", caller, async |_| self.tokenize_input(message).await).await
    }

    async fn list_models(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let (caller, _) = Caller::of(request);
        let models = async |account: Account| {
            let models = self.chat.models().filter(|it| account.check_model(it.model.id()).is_ok());
            Ok(ListModelsResponse { models: models.map(model).collect() })
        };
        self.call("ListModels", caller, models).await
    }
}

// === impl Caller ===

impl Caller {
    fn of<T>(request: Request<T>) -> (Self, T) {
        let (metadata, extensions, message) = request.into_parts();
        (Self { headers: metadata.into_headers(), peer: peer(&extensions) }, message)
    }
}

fn model(served: &Served) -> Model {
    Model {
        id: served.model.id().to_owned(),
        created: served.model.created(),
        context_length: served.context_length(),
        ready: served.is_routable(),
    }
}
