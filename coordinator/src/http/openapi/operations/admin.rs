//! Status, keys and usage.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::{JSON, Operation, Tag, of};
use crate::http::admin::{KeyList, KeyObject, KeyPatch, NewKey, StatusObject, UsageList};

/// What a path names.
const ID: &str = "Number of the key.";

/// The operations.
pub(super) fn all() -> Vec<Operation> {
    let refusals = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND];
    vec![
        Operation::new(Method::GET, "/admin/v1/status", "status", Tag::Admin)
            .summary("Status")
            .description(
                "How each model's group is: its ranks, what they do, and what went wrong lately. \
                 `switchyard status` shows it.",
            )
            .admin_key()
            .answer(200, "The status.", vec![of::<StatusObject>(JSON)]),
        Operation::new(Method::GET, "/admin/v1/keys", "listKeys", Tag::Admin)
            .summary("List keys")
            .description("All keys, revoked ones too, without the secrets.")
            .admin_key()
            .answer(200, "The keys.", vec![of::<KeyList>(JSON)]),
        Operation::new(Method::POST, "/admin/v1/keys", "createKey", Tag::Admin)
            .summary("Create key")
            .description("Makes a key. Its secret is in this answer only.")
            .admin_key()
            .body::<NewKey>()
            .answer(201, "The key, with its secret.", vec![of::<KeyObject>(JSON)]),
        Operation::new(Method::GET, "/admin/v1/keys/{id}", "retrieveKey", Tag::Admin)
            .summary("Retrieve key")
            .description("One key.")
            .admin_key()
            .path_parameter("id", ID)
            .answer(200, "The key.", vec![of::<KeyObject>(JSON)])
            .refuses(&refusals),
        Operation::new(Method::PATCH, "/admin/v1/keys/{id}", "updateKey", Tag::Admin)
            .summary("Update key")
            .description("Changes the fields that are sent; `null` takes a limit away.")
            .admin_key()
            .path_parameter("id", ID)
            .body::<KeyPatch>()
            .answer(200, "The key as it is now.", vec![of::<KeyObject>(JSON)])
            .refuses(&refusals),
        Operation::new(Method::DELETE, "/admin/v1/keys/{id}", "revokeKey", Tag::Admin)
            .summary("Revoke key")
            .description("Revokes a key for good. It stays in the list, and so does its usage.")
            .admin_key()
            .path_parameter("id", ID)
            .answer(200, "The key as it is now.", vec![of::<KeyObject>(JSON)])
            .refuses(&refusals),
        usage(),
    ]
}

fn usage() -> Operation {
    let date = || json!({ "type": "string", "format": "date" });
    Operation::new(Method::GET, "/admin/v1/usage", "sumUpUsage", Tag::Admin)
        .summary("Sum up usage")
        .description(
            "Requests and tokens by day, key or model; without dates, of the month so far.",
        )
        .admin_key()
        .query_parameter("from", "First day, UTC.", date())
        .query_parameter("to", "Last day, UTC.", date())
        .query_parameter("key_id", "Of this key only.", json!({ "type": "integer" }))
        .query_parameter("model", "Of this model only.", json!({ "type": "string" }))
        .query_parameter(
            "group_by",
            "What each sum is of.",
            json!({ "type": "string", "enum": ["day", "key", "model"] }),
        )
        .answer(200, "The sums.", vec![of::<UsageList>(JSON)])
        .refuses(&[StatusCode::BAD_REQUEST])
}
