//! Bodies of requests in every dialect, up to the point where a prompt goes to the engine.
//!
//! Whatever the bytes, a request is refused with a reason that the client can act on, or the engine gets what it was
//! promised. It is never the server's fault.

use std::sync::Arc;

use switchyard_coordinator::chat::compat::Compat;
use switchyard_coordinator::chat::completion::CompletionRequest;
use switchyard_coordinator::chat::invalid::Invalid;
use switchyard_coordinator::chat::messages::Messages;
use switchyard_coordinator::chat::protocol::{Protocol, Request};
use switchyard_coordinator::chat::request::ChatRequest;
use switchyard_coordinator::chat::responses::Call;
use switchyard_coordinator::chat::{Chat, Error, Generate, Served};
use switchyard_coordinator::engine::request::SubmitError;
use tokio::runtime::Runtime;

use crate::engine::Engine;

/// A coordinator without workers.
#[derive(Debug)]
pub struct Requests {
    runtime: Runtime,
    /// One for each API that can be kept to.
    chats: [Chat; 2],
}

// === impl Requests ===

impl Requests {
    /// Reads the demo model's files.
    #[must_use]
    pub fn new() -> Self {
        let chats = [Compat::OpenAi, Compat::DeepSeek].map(|compat| {
            let model = crate::model();
            let engine = Engine::new(model.config().vocab_size, model.context_length());
            let engine = engine as Arc<dyn Generate>;
            Chat::new(vec![Served { model, engine }], 1).with_compat(compat)
        });
        Self { runtime: crate::runtime(), chats }
    }

    /// Sends a body to every route that generates.
    ///
    /// # Panics
    /// When the server would be at fault.
    pub fn check(&self, body: &[u8]) {
        for chat in &self.chats {
            self.send(chat, ChatRequest::from_slice(body));
            self.send(chat, Messages::from_slice(body));
            self.send(chat, Request::<CompletionRequest>::from_slice(body));
            let call = Call::from_slice(body).and_then(Call::into_request);
            self.send(chat, call.map(|(request, _)| request));
        }
    }

    fn send<P: Protocol>(&self, chat: &Chat, request: Result<Request<P>, Invalid>) {
        let error = match request {
            Ok(request) => {
                let answer = self.runtime.block_on(chat.start(request));
                answer.expect_err("the engine refuses everything")
            }
            Err(invalid) => invalid.into(),
        };
        match error {
            Error::Invalid(_)
            | Error::UnknownModel { .. }
            | Error::ContextLength { .. }
            | Error::Submit(SubmitError::NotReady { .. }) => {
                let message = error.to_string();
                assert!(message.len() > 10, "{message:?} helps nobody");
            }
            Error::Internal { doing, source } => panic!("{doing}: {source}"),
            Error::Submit(_)
            | Error::Busy { .. }
            | Error::Generate(_)
            | Error::Denied(_)
            | Error::Unrecorded(_) => panic!("no request can lead to {error:?}"),
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}
