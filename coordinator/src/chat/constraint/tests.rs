use serde_json::{Value, json};

use super::*;
use crate::chat::Chat;
use crate::chat::request::ChatRequest;
use crate::testing;

/// What a request's answer must look like, or the error; nothing reaches the engine then.
async fn constrained(fields: Value) -> Result<Option<Constraint>, Error> {
    let body = json!({
        "model": testing::MODEL,
        "messages": [{ "role": "user", "content": "some json" }],
    });
    let body = testing::merged(body, &fields);
    let (served, engine) = testing::served_with_context(100_000);
    engine.answer(&[]);
    let request = ChatRequest::from_slice(body.to_string().as_bytes())?;
    let started = Chat::new(vec![served], 1).start(request).await;
    let mut requests = engine.take_requests();
    assert_eq!(requests.len(), usize::from(started.is_ok()));
    started?;
    Ok(requests.remove(0).constraint.map(Arc::unwrap_or_clone))
}

/// Whether the answer may be this text; `¦` stands for `｜DSML｜`.
fn takes(constraint: &Constraint, text: &str) -> bool {
    let (served, _) = testing::served();
    let mut matcher = served.model.vocabulary().unwrap().compile(&constraint.grammar).unwrap();
    let ids = text.split('¦').map(testing::ids).collect::<Vec<_>>().join(&testing::DSML);
    ids.into_iter().chain([testing::EOS]).all(|id| {
        let allowed = matcher.mask().unwrap().allows(id);
        allowed && matcher.accept(id).is_ok()
    })
}

fn schema() -> Value {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } })
}

fn tool(strict: bool) -> Value {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "type": "string" } },
        "required": ["city"],
        "additionalProperties": false,
    });
    let function = json!({ "name": "weather", "parameters": parameters, "strict": strict });
    json!([{ "type": "function", "function": function }])
}

const CALL: &str = "\n\n<¦tool_calls>\n<¦invoke name=\"weather\">\n<¦parameter name=\"city\" string=\"true\">Lima</¦parameter>\n</¦invoke>\n</¦tool_calls>";

#[tokio::test]
async fn each_format_is_enforced() {
    for (format, good, bad) in [
        (json!({ "type": "json_object" }), r#"{"b": 1}"#, "[1]"),
        (schema(), r#"{"a": 1}"#, r#"{"a": "1"}"#),
        (json!({ "type": "regex", "regex": "[ab]+" }), "abba", "abc"),
        (json!({ "type": "grammar", "grammar": "start: \"x\" y*\ny: \"yes\"" }), "xyesyes", "yes"),
    ] {
        let constraint = constrained(json!({ "response_format": format })).await.unwrap().unwrap();
        assert!(takes(&constraint, good) && !takes(&constraint, bad), "{format}");
        assert_eq!(constraint.after, None);
    }
    assert_eq!(constrained(json!({})).await.unwrap(), None);
    assert_eq!(constrained(json!({ "response_format": { "type": "text" } })).await.unwrap(), None);
}

#[tokio::test]
async fn a_model_thinks_freely_before_the_grammar_holds() {
    let fields = json!({ "response_format": schema(), "thinking": { "type": "enabled" } });
    let constraint = constrained(fields).await.unwrap().unwrap();
    assert_eq!(constraint.after, Some(testing::END_THINK));
    assert_eq!(constraint.forbidden_before, [testing::EOS, testing::DSML]);
}

#[tokio::test]
async fn tools_are_enforced_when_strict_forced_or_single() {
    assert_eq!(constrained(json!({ "tools": tool(false) })).await.unwrap(), None);
    let none = json!({ "tools": tool(true), "tool_choice": "none" });
    assert_eq!(constrained(none).await.unwrap(), None);

    let strict = constrained(json!({ "tools": tool(true) })).await.unwrap().unwrap();
    assert!(takes(&strict, CALL) && takes(&strict, "Hello"));
    assert!(!takes(&strict, &CALL.replace("city", "town")));

    let single = json!({ "tools": tool(false), "parallel_tool_calls": false });
    let single = constrained(single).await.unwrap().unwrap();
    assert!(takes(&single, CALL) && takes(&single, &CALL.replace("city", "town")));

    // The prompt has opened the block already, unless the model thinks first.
    let forced = json!({ "tools": tool(false), "tool_choice": "required" });
    let forced = constrained(forced).await.unwrap().unwrap();
    let inner = CALL.strip_prefix("\n\n<¦tool_calls>\n").unwrap();
    assert!(takes(&forced, inner) && !takes(&forced, "Hello") && !takes(&forced, CALL));
    let thinking = json!({
        "tools": tool(false),
        "tool_choice": { "type": "function", "function": { "name": "weather" } },
        "thinking": { "type": "enabled" },
    });
    let thinking = constrained(thinking).await.unwrap().unwrap();
    assert!(takes(&thinking, CALL) && !takes(&thinking, "Hello"));
    assert_eq!(thinking.after, Some(testing::END_THINK));

    let both = json!({ "tools": tool(false), "response_format": schema() });
    let both = constrained(both).await.unwrap().unwrap();
    assert!(takes(&both, CALL) && takes(&both, r#"{"a": 1}"#) && !takes(&both, "Hello"));
}

/// A strict schema with keywords that conversion has no type for.
fn rich() -> Value {
    json!({
        "type": "object",
        "properties": {
            "days": { "type": "integer", "enum": [1, 2], "title": "Days" },
            "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "minItems": 1, "maxItems": 2 },
        },
        "required": ["days", "tags"],
        "additionalProperties": false,
        "$defs": { "tag": { "type": "string", "enum": ["a", "b"] } },
    })
}

#[tokio::test]
async fn a_strict_schema_is_enforced_to_its_last_keyword() {
    let format = json!({ "name": "n", "strict": true, "schema": rich() });
    let format = json!({ "response_format": { "type": "json_schema", "json_schema": format } });
    let format = constrained(format).await.unwrap().unwrap();
    let function = json!({ "name": "f", "strict": true, "parameters": rich() });
    let tool = json!({
        "tools": [{ "type": "function", "function": function }], "tool_choice": "required",
    });
    let tool = constrained(tool).await.unwrap().unwrap();
    for (days, tags, good) in [
        ("1", r#"["a", "b"]"#, true),
        ("3", r#"["a"]"#, false),
        ("1", r#"["c"]"#, false),
        ("1", "[]", false),
        ("1", r#"["a", "a", "a"]"#, false),
    ] {
        let json = format!(r#"{{"days": {days}, "tags": {tags}}}"#);
        assert_eq!(takes(&format, &json), good, "{json}");
        let call = format!(
            "<¦invoke name=\"f\">\n<¦parameter name=\"days\" string=\"false\">{days}</¦parameter>\n\
             <¦parameter name=\"tags\" string=\"false\">{tags}</¦parameter>\n</¦invoke>\n</¦tool_calls>"
        );
        assert_eq!(takes(&tool, &call), good, "{call}");
    }
    // What conversion adds holds, too.
    assert!(!takes(&format, r#"{"days": 1}"#));
    assert!(!takes(&format, r#"{"days": 1, "tags": ["a"], "more": 1}"#));
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_by_name() {
    let format = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } });
    let regex = |regex: &str| json!({ "response_format": { "type": "regex", "regex": regex } });
    for (fields, part) in [
        (regex("(?=a)b"), "look-around"),
        (regex(&"(".repeat(100)), "levels of brackets"),
        (regex(&"ab".repeat(40_000)), "bytes, at most 65536"),
        (
            format(
                json!({ "type": "object", "properties": { "a": { "$ref": "#/$defs/none" } }, "required": ["a"] }),
            ),
            "/$defs/none",
        ),
        (
            json!({ "response_format": { "type": "grammar", "grammar": "no grammar" } }),
            "cannot be enforced",
        ),
    ] {
        let error = constrained(fields.clone()).await.unwrap_err();
        let Error::Invalid(invalid) = &error else { panic!("{fields}: {error}") };
        assert_eq!(invalid.param.as_deref(), Some("response_format"), "{invalid}");
        assert!(invalid.message.contains(part), "{invalid}");
    }
}
