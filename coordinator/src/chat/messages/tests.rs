use deepseek_recipe::request::ModelVersion;
use serde_json::json;

use super::*;
use crate::testing::merged;

fn request(fields: &Value) -> Request<Messages> {
    let body = json!({
        "model": "m",
        "messages": [{ "role": "user", "content": "hi" }],
        "tools": [
            { "name": "a", "input_schema": { "type": "object" } },
            { "name": "b", "input_schema": { "type": "object" } },
        ],
    });
    Messages::from_slice(merged(body, fields).to_string().as_bytes()).unwrap()
}

fn options() -> ConversionOptions {
    ConversionOptions::new().with_model_alias("m", ModelVersion::DeepseekV4Pro)
}

#[test]
fn a_forced_tool_is_a_rule_while_thinking_only() {
    let named = json!({ "type": "tool", "name": "b" });
    for (thinking, choice, rule, tools) in [
        (true, json!({ "type": "any" }), true, 2),
        (true, named.clone(), true, 1),
        (true, json!({ "type": "auto" }), false, 2),
        (false, json!({ "type": "any" }), false, 2),
        (false, named, false, 2),
    ] {
        let mut request = request(&json!({ "tool_choice": choice }));
        request.body.relax(thinking, &mut request.extras).unwrap();
        assert_eq!(request.extras.rules.tool_required, rule, "{thinking} {choice}");
        assert_eq!(request.body.body.tools.unwrap().len(), tools, "{thinking} {choice}");
        assert_eq!(request.body.body.tool_choice.is_none(), rule);
    }
}

#[test]
fn one_tool_call_at_most_is_a_rule() {
    for (choice, rule) in [
        (json!({ "type": "auto", "disable_parallel_tool_use": true }), true),
        (json!({ "type": "any", "disable_parallel_tool_use": true }), true),
        (json!({ "type": "auto", "disable_parallel_tool_use": false }), false),
        (json!({ "type": "any" }), false),
    ] {
        let request = request(&json!({ "tool_choice": choice }));
        assert_eq!(request.extras.rules.single_tool_call, rule, "{choice}");
    }
}

#[test]
fn without_relaxing_a_demand_for_a_tool_is_refused_while_thinking() {
    let options = options();
    for choice in [json!({ "type": "any" }), json!({ "type": "tool", "name": "b" })] {
        let request = request(&json!({ "tool_choice": choice }));
        let error = request.body.convert(options.clone()).unwrap_err();
        assert!(error.to_string().contains("tool_choice"), "{error}");
    }
}

#[test]
fn the_default_of_thinking_gives_way_to_a_message_to_continue() {
    let prefill = json!([
        { "role": "user", "content": "hi" }, { "role": "assistant", "content": "so" },
    ]);
    let options = options();
    let converted = request(&json!({ "messages": prefill })).body.convert(options.clone()).unwrap();
    assert!(!converted.conversation.thinking_mode);
    let fields = json!({ "messages": prefill, "output_config": { "effort": "high" } });
    request(&fields).body.convert(options).unwrap_err();
}

#[test]
fn strict_tools_stay_strict_and_a_schema_is_a_constraint() {
    let schema = json!({ "type": "object" });
    let tools = json!([
        { "name": "a", "input_schema": schema, "strict": true },
        { "name": "b", "input_schema": schema, "strict": false },
    ]);
    let converted = request(&json!({ "tools": tools })).body.convert(options()).unwrap();
    let strict: Vec<_> = converted.conversation.tools.iter().map(|tool| tool.strict).collect();
    assert_eq!(strict, [Some(true), None]);

    let format = json!({ "type": "json_schema", "schema": schema });
    let fields = json!({ "tools": [], "output_config": { "format": format } });
    let converted = request(&fields).body.convert(options()).unwrap();
    let constraint = converted.inference_options.output_constraint;
    assert_eq!(constraint, Some(OutputConstraint::Json { schema: Some(schema) }));
}
