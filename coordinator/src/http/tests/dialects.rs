//! What the tests of all dialects share.

use super::*;
use crate::chat::Chat;
use crate::testing::{DSML, END_THINK, ids};

/// Longest sequence where a test needs room for tools.
const ROOM: u32 = 16_384;

/// A fixture whose model has room for tools.
pub(super) async fn roomy() -> Fixture {
    let mut fixture = Fixture::new().await;
    let (served, engine) = testing::served_with_context(ROOM);
    fixture.context.chat = Arc::new(Chat::new(vec![served], 8));
    fixture.engine = engine;
    fixture
}

/// Names and data of the events of a stream.
pub(super) fn events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split_terminator("\n\n").filter_map(event).collect()
}

/// Reasoning, a text and a tool call, as the model writes them.
pub(super) fn rich_output() -> Vec<u32> {
    let mut tokens = [&ids("hm")[..], &[END_THINK], &ids("I add.")].concat();
    for text in [
        "\n\n<",
        "tool_calls>\n<",
        "invoke name=\"add\">\n<",
        "parameter name=\"a\" string=\"false\">5</",
        "parameter>\n</",
        "invoke>\n</",
    ] {
        tokens.extend(ids(text));
        tokens.push(DSML);
    }
    tokens.extend(ids("tool_calls>"));
    tokens
}
