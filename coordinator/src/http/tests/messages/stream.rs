//! Streams: the sequence of events, and what they add up to.

use super::*;
use crate::engine::request::FinishReason;

#[tokio::test]
async fn a_stream_is_the_dialects_sequence_of_events() {
    let fixture = roomy().await;
    fixture.engine.answer(&rich_output());
    let mut request = rich_request();
    request["stream"] = true.into();
    let answer = fixture.message(&request).await;
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    let events = events(&answer.text());
    for (name, data) in &events {
        assert_eq!(data["type"], **name);
    }
    // Deltas of one block in one line.
    let mut steps: Vec<String> = Vec::new();
    for (name, data) in &events {
        let step = match name.as_str() {
            "content_block_start" => {
                format!("start {} {}", data["index"], data["content_block"]["type"])
            }
            "content_block_delta" => format!("{} {}", data["index"], data["delta"]["type"]),
            "content_block_stop" => format!("stop {}", data["index"]),
            _ => name.clone(),
        };
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    }
    assert_eq!(
        steps,
        [
            "message_start",
            "start 0 \"thinking\"",
            "ping",
            "0 \"thinking_delta\"",
            "0 \"signature_delta\"",
            "stop 0",
            "start 1 \"text\"",
            "1 \"text_delta\"",
            "stop 1",
            "start 2 \"tool_use\"",
            "2 \"input_json_delta\"",
            "stop 2",
            "message_delta",
            "message_stop",
        ]
    );
    let (_, end) = &events[events.len() - 2];
    assert_eq!(end["delta"], json!({ "stop_reason": "tool_use", "stop_sequence": null }));
    assert_eq!(end["usage"]["output_tokens"], rich_output().len());
}

/// The message that a stream adds up to, as a client adds it up. Checks that blocks open and close in order.
fn added_up(events: &[(String, Value)]) -> Value {
    let mut message = Value::Null;
    let mut input = String::new();
    let mut open = None;
    for (name, data) in events {
        let blocks = message["content"].as_array().map_or(0, Vec::len);
        match name.as_str() {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                assert_eq!((open, &data["index"]), (None, &json!(blocks)));
                open = Some(blocks);
                input.clear();
                message["content"].as_array_mut().unwrap().push(data["content_block"].clone());
            }
            "content_block_delta" => {
                let index = open.expect("an open block");
                assert_eq!(data["index"], index);
                let block = &mut message["content"][index];
                let mut add = |field: &str| {
                    let text = block[field].as_str().unwrap().to_owned();
                    block[field] = (text + data["delta"][field].as_str().unwrap()).into();
                };
                match data["delta"]["type"].as_str().unwrap() {
                    "text_delta" => add("text"),
                    "thinking_delta" => add("thinking"),
                    "signature_delta" => add("signature"),
                    _ => input += data["delta"]["partial_json"].as_str().unwrap(),
                }
            }
            "content_block_stop" => {
                let index = open.take().expect("an open block");
                if message["content"][index]["type"] == "tool_use" {
                    message["content"][index]["input"] =
                        serde_json::from_str(&input).unwrap_or_else(|_| json!({}));
                }
            }
            "message_delta" => {
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["usage"] = data["usage"].clone();
            }
            _ => {}
        }
    }
    assert_eq!(open, None);
    message
}

#[tokio::test]
async fn wherever_an_answer_is_cut_stream_and_whole_agree_and_show_no_markup() {
    let fixture = roomy().await;
    let output = rich_output();
    let mut streamed = rich_request();
    streamed["stream"] = true.into();
    for cut in 0..=output.len() {
        for _ in 0..2 {
            let events = complete(&output[..cut], FinishReason::Length);
            fixture.engine.script(Script::Events(events));
        }
        let stream = fixture.message(&streamed).await.text();
        let events = events(&stream);
        assert_eq!(events.last().unwrap().0, "message_stop", "{cut}");
        let mut added_up = added_up(&events);
        let mut whole = fixture.message(&rich_request()).await.json();
        assert_eq!(whole["stop_reason"], "max_tokens");
        for message in [&mut added_up, &mut whole] {
            let id = message["id"].take();
            for block in message["content"].as_array_mut().unwrap() {
                match block["type"].as_str().unwrap() {
                    // The signature names the answer, and a call has an id of its own.
                    "thinking" => assert_eq!(block["signature"].take(), id),
                    "tool_use" => assert!(block["id"].take().as_str().unwrap().starts_with("call")),
                    _ => {}
                }
            }
        }
        assert_eq!(added_up, whole, "{cut}");
        for markup in ["DSML", "think>", "invoke", "tool_calls"] {
            let content = whole["content"].to_string();
            assert!(!content.contains(markup), "{cut}: {content}");
        }
    }
}
