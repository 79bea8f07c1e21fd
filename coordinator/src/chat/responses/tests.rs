use serde_json::json;

use super::*;
use crate::testing::merged;

fn call(fields: &Value) -> Result<Call, Invalid> {
    let body = merged(json!({ "model": "m", "input": "hi" }), fields);
    Call::from_slice(body.to_string().as_bytes())
}

fn request(fields: &Value) -> Request<Responses> {
    call(fields).unwrap().into_request().unwrap().0
}

#[test]
fn a_forced_tool_is_a_rule_while_thinking_only() {
    let tools = json!([
        { "type": "function", "name": "a", "parameters": { "type": "object" } },
        { "type": "function", "name": "b", "parameters": { "type": "object" } },
    ]);
    let named = json!({ "type": "function", "name": "b" });
    for (thinking, choice, rule, left) in [
        (true, json!("required"), true, 2),
        (true, named.clone(), true, 1),
        (true, json!("auto"), false, 2),
        (false, json!("required"), false, 2),
        (false, named, false, 2),
    ] {
        let mut request = request(&json!({ "tools": tools, "tool_choice": choice }));
        request.body.relax(thinking, &mut request.extras).unwrap();
        assert_eq!(request.extras.rules.tool_required, rule, "{thinking} {choice}");
        assert_eq!(request.body.0.tools.unwrap().len(), left, "{thinking} {choice}");
    }
    let single = request(&json!({ "tools": tools, "parallel_tool_calls": false }));
    assert!(single.extras.rules.single_tool_call);
}

#[test]
fn a_tool_choice_without_its_tool_is_refused() {
    for choice in [json!("required"), json!({ "type": "function", "name": "c" })] {
        for tools in [json!([]), json!([{ "type": "function", "name": "a" }])] {
            let mut request = request(&json!({ "tools": tools, "tool_choice": choice }));
            let refused = request.body.relax(false, &mut request.extras).is_err();
            assert_eq!(refused, choice != "required" || tools == json!([]), "{choice} {tools}");
        }
    }
}

#[test]
fn log_probabilities_can_be_included() {
    let include = json!(["message.output_text.logprobs", "reasoning.encrypted_content"]);
    assert_eq!(request(&json!({ "include": include })).body.0.top_logprobs, Some(0));
    let both = json!({ "include": include, "top_logprobs": 3 });
    assert_eq!(request(&both).body.0.top_logprobs, Some(3));
    assert_eq!(request(&json!({})).body.0.top_logprobs, None);
}

#[test]
fn items_are_completed_once() {
    let (_, items) = call(&json!({ "input": [
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "b", "id": "msg_own" },
        { "type": "function_call_output", "call_id": "c", "output": "d" },
    ] }))
    .unwrap()
    .into_request()
    .unwrap();
    assert_eq!(items[0]["type"], "message");
    assert_eq!(items[0]["content"], json!([{ "type": "input_text", "text": "a" }]));
    assert!(items[0]["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(items[1]["content"], json!([{ "type": "output_text", "text": "b" }]));
    assert_eq!(items[1]["id"], "msg_own");
    assert!(items[2]["id"].as_str().unwrap().starts_with("fco_"));
    let again = items::read(Some(items.clone().into())).unwrap();
    assert_eq!(again, items);
}

#[test]
fn an_item_names_the_response_that_made_it() {
    assert_eq!(items::response_of("rs_resp_0a1b_12"), Some("resp_0a1b"));
    assert_eq!(items::response_of("msg_0a1b"), None);
    assert_eq!(items::response_of(""), None);
}
