//! OpenAI's Responses.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::{EVENTS, JSON, Operation, Tag, of};
use crate::http::openapi::answers::NamedEvent;
use crate::http::openapi::answers::responses::{
    DeletedResponse, InputTokens, ItemList, Response, ResponseStreamData,
};
use crate::http::openapi::requests::ResponsesRequest;

/// What a path names.
const ID: &str = "Id of a response that was made with the same key and is kept.";

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    [generating(), keeping()].concat()
}

/// Those that take a request.
fn generating() -> Vec<Operation> {
    vec![
        Operation::new(Method::POST, "/v1/responses", "createResponse", Tag::Responses)
            .summary("Create response")
            .description(
                "Answers a conversation, as a whole, with `stream` as named events, or with `background` later: then \
                 the answer is `in_progress`, and to be fetched by its id.",
            )
            .key()
            .body::<ResponsesRequest>()
            .answer(
                200,
                "The response, or its events.",
                vec![of::<Response>(JSON), of::<NamedEvent<ResponseStreamData>>(EVENTS)],
            )
            .refuses(&[StatusCode::NOT_FOUND])
            .generates(),
        Operation::new(Method::POST, "/v1/responses/input_tokens", "countInputTokens", Tag::Responses)
            .summary("Count input tokens")
            .description("Tokens of the prompt that a request of Create response would become.")
            .key()
            .body::<ResponsesRequest>()
            .answer(200, "The count.", vec![of::<InputTokens>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
    ]
}

/// Those that concern a kept response.
fn keeping() -> Vec<Operation> {
    let refusals = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND];
    vec![
        Operation::new(Method::GET, "/v1/responses/{id}", "retrieveResponse", Tag::Responses)
            .summary("Retrieve response")
            .description("A kept response, as a whole; `stream=true` is refused.")
            .key()
            .path_parameter("id", ID)
            .answer(200, "The response, as it is now.", vec![of::<Response>(JSON)])
            .refuses(&refusals),
        Operation::new(Method::DELETE, "/v1/responses/{id}", "deleteResponse", Tag::Responses)
            .summary("Delete response")
            .description("Forgets a response, and stops it if it is being made.")
            .key()
            .path_parameter("id", ID)
            .answer(200, "It is forgotten.", vec![of::<DeletedResponse>(JSON)])
            .refuses(&[StatusCode::NOT_FOUND]),
        Operation::new(
            Method::GET,
            "/v1/responses/{id}/input_items",
            "listInputItems",
            Tag::Responses,
        )
        .summary("List input items")
        .description("The conversation that a response answers, page by page.")
        .key()
        .path_parameter("id", ID)
        .query_parameter(
            "limit",
            "Most items of the page.",
            json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 }),
        )
        .query_parameter(
            "order",
            "Newest first, or oldest.",
            json!({ "type": "string", "enum": ["desc", "asc"], "default": "desc" }),
        )
        .query_parameter(
            "after",
            "Id of the last item of the page before.",
            json!({ "type": "string" }),
        )
        .answer(200, "The page.", vec![of::<ItemList>(JSON)])
        .refuses(&refusals),
        Operation::new(Method::POST, "/v1/responses/{id}/cancel", "cancelResponse", Tag::Responses)
            .summary("Cancel response")
            .description(
                "Stops a response that is made in the background; one that is over stays as it is.",
            )
            .key()
            .path_parameter("id", ID)
            .answer(200, "The response, as it is now.", vec![of::<Response>(JSON)])
            .refuses(&refusals),
    ]
}
