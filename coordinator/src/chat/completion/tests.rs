use serde_json::json;

use super::*;
use crate::testing::merged;

fn parse(fields: &Value) -> Result<Request<CompletionRequest>, Invalid> {
    let body = merged(json!({ "model": "tiny", "prompt": "hi" }), fields);
    Request::<CompletionRequest>::from_slice(body.to_string().as_bytes())
}

fn text(text: &str) -> RawPrompt {
    RawPrompt::Text(text.to_owned())
}

#[test]
fn prompts_come_in_four_forms() {
    for (prompt, expect) in [
        (json!("hi"), vec![text("hi")]),
        (json!(""), vec![text("")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![RawPrompt::Tokens(vec![1, 2])]),
        (json!([[1], [2, 3]]), vec![RawPrompt::Tokens(vec![1]), RawPrompt::Tokens(vec![2, 3])]),
        (json!(["a", [1]]), vec![text("a"), RawPrompt::Tokens(vec![1])]),
    ] {
        let raw = parse(&json!({ "prompt": prompt })).unwrap().extras.raw.unwrap();
        assert_eq!(raw, Raw { prompts: expect, begin: true, echo: false }, "{prompt}");
    }
}

#[test]
fn what_cannot_be_served_is_named() {
    let mut wrong = Vec::new();
    for (fields, code, param) in [
        (json!({ "prompt": null }), InvalidCode::Missing, "prompt"),
        (json!({ "prompt": 7 }), InvalidCode::Type, "prompt"),
        (json!({ "prompt": [1, "a"] }), InvalidCode::Type, "prompt"),
        (json!({ "prompt": [-1] }), InvalidCode::Type, "prompt"),
        (json!({ "prompt": [["a"]] }), InvalidCode::Type, "prompt"),
        (json!({ "prompt": vec!["a"; 17] }), InvalidCode::Value, "prompt"),
        (json!({ "suffix": "end" }), InvalidCode::Unsupported, "suffix"),
        (json!({ "logprobs": 6 }), InvalidCode::Value, "logprobs"),
        (json!({ "logprobs": true }), InvalidCode::Type, "logprobs"),
        (json!({ "logprobs": 1, "echo": true }), InvalidCode::Unsupported, "logprobs"),
        (json!({ "echo": 1 }), InvalidCode::Type, "echo"),
        (json!({ "best_of": 2 }), InvalidCode::Unsupported, "best_of"),
        (json!({ "n": 17 }), InvalidCode::Value, "n"),
        (json!({ "messages": [1] }), InvalidCode::Unsupported, "messages"),
    ] {
        let error = parse(&fields).expect_err(&fields.to_string());
        if (error.code, error.param.as_deref()) != (code, Some(param)) {
            wrong.push(format!("{fields}: {error:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    for fields in [
        json!({ "suffix": null, "best_of": 1, "logprobs": null, "user": "someone" }),
        json!({ "n": 3, "best_of": 3 }),
    ] {
        parse(&fields).unwrap_or_else(|error| panic!("{fields}: {error}"));
    }
}
