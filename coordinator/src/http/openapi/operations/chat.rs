//! Chat completions, completions, and the tokenizer that both use.

use axum::http::{Method, StatusCode};

use super::{EVENTS, JSON, Operation, Tag, of};
use crate::http::openapi::answers::completions::Completion;
use crate::http::openapi::answers::{ChatCompletion, ChatCompletionChunk, Event};
use crate::http::openapi::requests::{
    ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest,
};
use crate::http::tokenize;

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        Operation::new(Method::POST, "/v1/chat/completions", "createChatCompletion", Tag::Chat)
            .summary("Create chat completion")
            .description(
                "Answers a conversation. With `stream`, the answer comes as server-sent events: chunks, then `[DONE]`; \
                 an answer that fails on the way ends with an event that has an `error`, and without `[DONE]`.",
            )
            .key()
            .body::<ChatCompletionRequest>()
            .answer(
                200,
                "The answer, or its chunks.",
                vec![of::<ChatCompletion>(JSON), of::<Event<ChatCompletionChunk>>(EVENTS)],
            )
            .refuses(&[StatusCode::NOT_FOUND])
            .generates(),
        Operation::new(Method::POST, "/v1/completions", "createCompletion", Tag::Completions)
            .summary("Create completion")
            .description(
                "Continues prompts as they are: no template is applied, and nothing of the text is parsed. A stream \
                 ends as one of Create chat completion does.",
            )
            .key()
            .body::<CompletionRequest>()
            .answer(
                200,
                "The text, or its chunks.",
                vec![of::<Completion>(JSON), of::<Event<Completion>>(EVENTS)],
            )
            .refuses(&[StatusCode::NOT_FOUND])
            .generates(),
        tokenizes("/v1/tokenize", "tokenize"),
        tokenizes("/tokenize", "tokenizeAtRoot"),
        detokenizes("/v1/detokenize", "detokenize"),
        detokenizes("/detokenize", "detokenizeAtRoot"),
    ]
}

/// vLLM has the routes without `/v1`.
fn tokenizes(path: &'static str, id: &'static str) -> Operation {
    Operation::new(Method::POST, path, id, Tag::Tokenizer)
        .summary("Tokenize")
        .description(
            "The token ids that a prompt of Create completion, or a conversation of Create chat completion, becomes.",
        )
        .key()
        .body::<TokenizeRequest>()
        .answer(200, "The token ids.", vec![of::<tokenize::Tokens>(JSON)])
        .refuses(&[StatusCode::NOT_FOUND])
}

fn detokenizes(path: &'static str, id: &'static str) -> Operation {
    Operation::new(Method::POST, path, id, Tag::Tokenizer)
        .summary("Detokenize")
        .description("The text of token ids, special tokens spelled out.")
        .key()
        .body::<DetokenizeRequest>()
        .answer(200, "The text.", vec![of::<tokenize::Prompt>(JSON)])
        .refuses(&[StatusCode::NOT_FOUND])
}
