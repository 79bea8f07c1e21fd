use serde_json::json;

use super::*;
use crate::chat::constraint::Rules;
use crate::chat::extras::LOGIT_BIAS_MAX;
use crate::testing::merged;

fn chat(fields: &Value) -> Value {
    let body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] });
    merged(body, fields)
}

fn parse(fields: &Value) -> Result<ChatRequest, Invalid> {
    ChatRequest::from_slice(chat(fields).to_string().as_bytes())
}

#[test]
fn fields_that_cannot_be_served_are_named() {
    let mut wrong = Vec::new();
    for (fields, code, param) in [
        (json!({ "model": null }), InvalidCode::Type, "model"),
        (json!({ "model": 7 }), InvalidCode::Type, "model"),
        (json!({ "messages": "hi" }), InvalidCode::Type, "messages"),
        (json!({ "messages": [{}] }), InvalidCode::Missing, "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), InvalidCode::Missing, "messages[0].content"),
        (
            json!({ "messages": [{ "role": "wizard", "content": "hi" }] }),
            InvalidCode::Value,
            "messages[0].role",
        ),
        (json!({ "temperature": "hot" }), InvalidCode::Type, "temperature"),
        (json!({ "max_tokens": -1 }), InvalidCode::Value, "max_tokens"),
        (json!({ "max_tokens": 1.5 }), InvalidCode::Type, "max_tokens"),
        (json!({ "max_tokens": 5_000_000_000_u64 }), InvalidCode::Value, "max_tokens"),
        (json!({ "n": 300 }), InvalidCode::Value, "n"),
        (json!({ "seed": -1 }), InvalidCode::Value, "seed"),
        (json!({ "stream": "yes" }), InvalidCode::Type, "stream"),
        (json!({ "stop": 7 }), InvalidCode::Value, "stop"),
        (json!({ "reasoning_effort": "extreme" }), InvalidCode::Value, "reasoning_effort"),
        (
            json!({ "response_format": { "type": "xml" } }),
            InvalidCode::Value,
            "response_format.type",
        ),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 5 } }),
            InvalidCode::Unsupported,
            "thinking.budget_tokens",
        ),
        (json!({ "best_of": 2 }), InvalidCode::Unsupported, "best_of"),
        (json!({ "temprature": 0.5 }), InvalidCode::Unsupported, "temprature"),
        (json!({ "ignore_eos": 1 }), InvalidCode::Type, "ignore_eos"),
        (
            json!({ "max_tokens": 5, "max_completion_tokens": 6 }),
            InvalidCode::Value,
            "max_completion_tokens",
        ),
    ] {
        let error = parse(&fields).expect_err(&fields.to_string());
        if (error.code, error.param.as_deref()) != (code, Some(param))
            || !error.message.contains(param)
        {
            wrong.push(format!("{fields}: {error:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn extensions_that_cannot_be_served_are_named() {
    let mut wrong = Vec::new();
    let many: Map<_, _> = (0..=LOGIT_BIAS_MAX).map(|id| (id.to_string(), 1.into())).collect();
    for (fields, code, param) in [
        (
            json!({ "response_format": { "type": "grammar" } }),
            InvalidCode::Missing,
            "response_format.grammar",
        ),
        (
            json!({ "response_format": { "type": "grammar", "grammar": " " } }),
            InvalidCode::Value,
            "response_format.grammar",
        ),
        (json!({ "n": -1 }), InvalidCode::Value, "n"),
        (json!({ "n": 1.5 }), InvalidCode::Type, "n"),
        (json!({ "top_k": 1.5 }), InvalidCode::Type, "top_k"),
        (json!({ "top_k": -2 }), InvalidCode::Value, "top_k"),
        (json!({ "min_p": 1.5 }), InvalidCode::Value, "min_p"),
        (json!({ "min_p": "all" }), InvalidCode::Type, "min_p"),
        (json!({ "logit_bias": [1] }), InvalidCode::Type, "logit_bias"),
        (json!({ "logit_bias": { "one": 1 } }), InvalidCode::Value, "logit_bias"),
        (json!({ "logit_bias": { "1": "more" } }), InvalidCode::Type, "logit_bias"),
        (json!({ "logit_bias": { "1": 100.5 } }), InvalidCode::Value, "logit_bias"),
        (json!({ "logit_bias": { "7": 1, "07": 1 } }), InvalidCode::Value, "logit_bias"),
        (json!({ "logit_bias": many }), InvalidCode::Value, "logit_bias"),
        (json!({ "prompt": "hi" }), InvalidCode::Value, "prompt"),
        (json!({ "system_prompt": "hi" }), InvalidCode::Value, "system_prompt"),
        (json!({ "messages": null, "system_prompt": "hi" }), InvalidCode::Missing, "prompt"),
        (json!({ "messages": null, "prompt": ["hi"] }), InvalidCode::Type, "prompt"),
    ] {
        let error = parse(&fields).expect_err(&fields.to_string());
        if (error.code, error.param.as_deref()) != (code, Some(param))
            || !error.message.contains(param)
        {
            wrong.push(format!("{fields}: {error:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_body_that_is_no_object_says_where() {
    for (body, code, message) in [
        (&b"{\"model\": \"\xff\"}"[..], InvalidCode::Utf8, "invalid byte at offset 11"),
        (b"", InvalidCode::Json, "line 1 column 0"),
        (b"{\"model\": }", InvalidCode::Json, "line 1 column 11"),
        (b"{} {}", InvalidCode::Json, "trailing characters at line 1 column 4"),
        (b"{\"temperature\": 1e999}", InvalidCode::Json, "number out of range"),
        (b"[1]", InvalidCode::Type, "must be a JSON object"),
        (b"{}", InvalidCode::Missing, "is required"),
    ] {
        let error = ChatRequest::from_slice(body).unwrap_err();
        assert_eq!(error.code, code);
        assert!(error.message.contains(message), "{error}");
    }
    let deep = "[".repeat(10_000);
    let error = ChatRequest::from_slice(deep.as_bytes()).unwrap_err();
    assert!(error.message.contains("recursion limit"), "{error}");
}

#[test]
fn fields_that_ask_for_nothing_are_accepted() {
    for fields in [
        json!({ "logit_bias": {}, "functions": [], "store": false, "best_of": null }),
        json!({ "user": "someone", "metadata": { "a": "b" }, "service_tier": "auto" }),
        json!({ "top_k": null, "min_p": null, "logit_bias": null, "n": null }),
        json!({ "prompt": null, "system_prompt": null }),
        json!({ "parallel_tool_calls": false, "tools": null }),
        json!({ "response_format": { "type": "text" } }),
    ] {
        parse(&fields).unwrap_or_else(|error| panic!("{fields}: {error}"));
    }
}

#[test]
fn max_completion_tokens_is_max_tokens() {
    for (fields, expect) in [
        (json!({ "max_completion_tokens": 5 }), Some(5)),
        (json!({ "max_completion_tokens": 5, "max_tokens": 5 }), Some(5)),
        (json!({ "max_completion_tokens": 5, "max_tokens": null }), Some(5)),
        (json!({ "max_completion_tokens": null, "max_tokens": 6 }), Some(6)),
        (json!({}), None),
    ] {
        assert_eq!(parse(&fields).unwrap().body.max_tokens, expect, "{fields}");
    }
}

#[test]
fn the_field_of_a_conversion_message_is_found() {
    for (detail, param) in [
        (
            "Invalid temperature value, the valid range of temperature is [0, 2]",
            Some("temperature"),
        ),
        ("Invalid top_logprobs and logprobs value, logprobs must be true", Some("top_logprobs")),
        ("Invalid 'stop[3]': empty string.", Some("stop[3]")),
        ("Stop string array too long: 17", Some("stop")),
        ("stream_options should be set along with stream = true", Some("stream_options")),
        ("Invalid n value (currently only n = 1 is supported)", Some("n")),
        ("Invalid assistant message: content or tool_calls must be set", Some("messages")),
        ("Invalid value for 'tool_call': no function named 'f' was specified", Some("tool_choice")),
        ("Empty input messages", Some("messages")),
        ("Tool names must be unique.", Some("tools")),
        ("something new", None),
    ] {
        let invalid = Invalid::from_detail(detail.to_owned());
        assert_eq!(invalid.param.as_deref(), param, "{detail}");
        assert_eq!(invalid.message, detail);
    }
}

#[test]
fn what_the_family_does_not_have_is_taken_out() {
    let fields = json!({
        "top_k": 5, "min_p": 0.5, "logit_bias": { "9": -100, "7": 0.5 }, "ignore_eos": true,
        "response_format": { "type": "grammar", "grammar": "start: \"a\"" },
        "tools": [{ "type": "function", "function": { "name": "f" } }], "parallel_tool_calls": false,
    });
    let ChatRequest { body, extras, .. } = parse(&fields).unwrap();
    assert!(body.response_format.is_none());
    assert_eq!(
        extras,
        Extras {
            ignore_eos: true,
            top_k: 5,
            min_p: 0.5,
            logit_bias: vec![(7, 0.5), (9, -100.0)],
            rules: Rules {
                tool_required: false,
                single_tool_call: true,
                grammar: Some("start: \"a\"".to_owned()),
                ..Rules::default()
            },
            ..Extras::default()
        }
    );
    assert_eq!(parse(&json!({ "top_k": -1 })).unwrap().extras, Extras::default());
    // Without tools there is nothing to be parallel.
    assert_eq!(parse(&json!({ "parallel_tool_calls": false })).unwrap().extras, Extras::default());
}
