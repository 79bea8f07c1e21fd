//! Anthropic's Messages.

use axum::http::{Method, StatusCode};

use super::{EVENTS, JSON, Operation, Tag, of};
use crate::http::messages::TokenCount;
use crate::http::openapi::answers::NamedEvent;
use crate::http::openapi::answers::messages::{Message, MessageStreamData};
use crate::http::openapi::requests::MessagesRequest;

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        Operation::new(Method::POST, "/v1/messages", "createMessage", Tag::Messages)
            .summary("Create message")
            .description(
                "Answers a conversation. With `stream`, the answer comes as named events, of which `message_stop` is \
                 the last; an answer that fails on the way ends with `error` instead.",
            )
            .key()
            .body::<MessagesRequest>()
            .answer(
                200,
                "The answer, or its events.",
                vec![of::<Message>(JSON), of::<NamedEvent<MessageStreamData>>(EVENTS)],
            )
            .refuses(&[StatusCode::NOT_FOUND])
            .generates(),
        Operation::new(Method::POST, "/v1/messages/count_tokens", "countMessageTokens", Tag::Messages)
            .summary("Count tokens")
            .description("Tokens of the prompt that a request of Create message would become.")
            .key()
            .body::<MessagesRequest>()
            .answer(200, "The count.", vec![of::<TokenCount>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
    ]
}
