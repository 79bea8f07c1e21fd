use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::*;
use crate::chat::request::ChatRequest;

const FACTS: Facts =
    Facts { context_length: Some(4096), default_thinking: Some(false), compat: Compat::OpenAi };

/// A request that would be served, with these fields on top.
fn with(fields: &[(&str, &Value)]) -> Map<String, Value> {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in fields {
        body[*name] = (*value).clone();
    }
    body.as_object().unwrap().clone()
}

#[test]
fn names_differ_and_the_form_counts_through() {
    let all = all(&FACTS);
    let names: BTreeSet<_> = all.iter().map(Parameter::name).collect();
    assert_eq!(names.len(), all.len());
    let schema = form_schema("A model", &FACTS);
    let properties = schema["properties"].as_object().unwrap();
    let groups: Vec<_> =
        properties.values().map(|property| property["x-group"].as_str().unwrap()).collect();
    assert!(groups.is_sorted_by(|a, b| a == b || *a == "basic"), "{groups:?}");
    for (order, (name, property)) in properties.iter().enumerate() {
        assert_eq!(property["x-order"], order, "{name}");
        for text in ["title", "description"] {
            assert!(!property[text].as_str().unwrap().is_empty(), "{name} has no {text}");
        }
        assert!(property["type"].is_string() || property["oneOf"].is_array(), "{name}");
    }
    assert!(!properties.contains_key("model") && !properties.contains_key("ignore_eos"));
    assert_eq!(schema["title"], "A model");
}

#[test]
fn the_form_knows_its_model() {
    let schema = form_schema("m", &FACTS);
    assert_eq!(schema["properties"]["max_tokens"]["maximum"], 4096);
    assert_eq!(schema["properties"]["thinking"]["default"], json!({ "type": "disabled" }));
    let thinks = Facts { default_thinking: Some(true), ..FACTS };
    let thinking = &form_schema("m", &thinks)["properties"]["thinking"];
    assert_eq!(thinking["default"], json!({ "type": "enabled" }));
    let any = body_schema();
    assert!(any["properties"]["max_tokens"].get("maximum").is_none());
    assert!(any["properties"]["thinking"].get("default").is_none());
}

#[test]
fn a_conversation_is_given_in_one_of_two_ways() {
    for (schema, also) in [(form_schema("m", &FACTS), vec![]), (body_schema(), vec!["model"])] {
        let accepts = |fields: &[&str]| {
            let has = |list: &Value| {
                list.as_array().unwrap().iter().all(|name| {
                    let name = name.as_str().unwrap();
                    also.contains(&name) || fields.contains(&name)
                })
            };
            let fits = |form: &&Value| {
                let none =
                    !form["not"]["anyOf"].as_array().unwrap().iter().any(|f| has(&f["required"]));
                has(&form["required"]) && none
            };
            schema["oneOf"].as_array().unwrap().iter().filter(fits).count() == 1
        };
        assert!(accepts(&["prompt"]) && accepts(&["prompt", "system_prompt"]));
        assert!(accepts(&["messages"]));
        assert!(!accepts(&[]) && !accepts(&["system_prompt"]));
        assert!(!accepts(&["messages", "prompt"]) && !accepts(&["messages", "system_prompt"]));
    }
}

#[test]
fn every_default_may_be_sent() {
    for parameter in all(&FACTS) {
        if let Some(default) = parameter.schema().get("default") {
            let request = ChatRequest::from_fields(with(&[(parameter.name(), default)]));
            assert!(request.is_ok(), "{}: {default}: {request:?}", parameter.name());
        }
    }
}

#[test]
fn wrong_types_are_refused_by_name() {
    for parameter in all(&FACTS) {
        // Labels for the client's books are not looked at, and `null` is as good as nothing.
        if parameter.description().contains("No effect") {
            continue;
        }
        let wrong = json!([[["wrong"]]]);
        let name = parameter.name();
        let error = ChatRequest::from_fields(with(&[(name, &wrong)])).unwrap_err();
        let param = error.param.unwrap_or_default();
        let expect = if name == "max_completion_tokens" { "max_tokens" } else { name };
        assert!(param.starts_with(expect), "{name}: {param}: {}", error.message);
    }
}
