//! Answers with reasoning, tool calls and what only looks like them, cut wherever tokens can be cut.
//!
//! A test token is one byte, or a special token. However they come in, the message must be the same; and an answer that
//! ends early must be the beginning of the whole, with nothing of the markup in it.

use deepseek_recipe::openai::chat_completion::request::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::ChatCompletionResponse;
use deepseek_recipe::request::ProtocolRequest as _;
use deepseek_recipe::response::ProtocolResponse as _;
use deepseek_recipe::stream::{InferenceChunk, InferenceFinishReason, StreamProcessor};
use futures::StreamExt as _;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::testing::{DSML, END_THINK, SPECIALS};

/// What a model may write, and what a client must see of it.
struct Sample {
    text: &'static str,
    fields: &'static [(&'static str, &'static str)],
    content: &'static str,
    reasoning: &'static str,
    calls: &'static [(&'static str, &'static str)],
}

const THINK: (&str, &str) = ("thinking", r#"{ "type": "enabled" }"#);
const TOOLS: (&str, &str) = (
    "tools",
    r#"[{ "type": "function", "function": { "name": "f" } }, { "type": "function", "function": { "name": "g" } }]"#,
);

const SAMPLES: [Sample; 9] = [
    Sample {
        text: "why</think>ans",
        fields: &[THINK],
        content: "ans",
        reasoning: "why",
        calls: &[],
    },
    Sample {
        text: "\n\nans 🌍 < 2\n",
        fields: &[],
        content: "ans 🌍 < 2\n",
        reasoning: "",
        calls: &[],
    },
    Sample {
        text: "t</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">x \"q\"</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        fields: &[THINK, TOOLS],
        content: "",
        reasoning: "t",
        calls: &[("f", r#"{"a": "x \"q\"", "n": 5}"#)],
    },
    Sample {
        text: "First <b>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"g\">\n<｜DSML｜parameter name=\"li\" string=\"false\">[{\"é\": \"</b>\"}]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>\n\nlost",
        fields: &[TOOLS],
        content: "First <b>",
        reasoning: "",
        calls: &[("f", "{}"), ("g", r#"{"li": [{"é": "</b>"}]}"#)],
    },
    // A call from within the reasoning.
    Sample {
        text: "so\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">1\n2 </ 3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        fields: &[THINK, TOOLS],
        content: "",
        reasoning: "so",
        calls: &[("f", r#"{"a": "1\n2 </ 3"}"#)],
    },
    // One end of thinking too many.
    Sample {
        text: "a\n</think>\n\nb</think>c",
        fields: &[THINK],
        content: "bc",
        reasoning: "a",
        calls: &[],
    },
    // Stop sequences are looked for in the answer alone.
    Sample {
        text: "no STOP</think>go ST STOP on",
        fields: &[THINK, ("stop", r#"["STOP"]"#)],
        content: "go ST ",
        reasoning: "no STOP",
        calls: &[],
    },
    Sample {
        text: "Here:\n```json\n{\"a\": [1]}\n```\nDone",
        fields: &[
            ("response_format", r#"{ "type": "json_object" }"#),
            ("messages", r#"[{ "role": "user", "content": "json" }]"#),
        ],
        content: "{\"a\": [1]}",
        reasoning: "",
        calls: &[],
    },
    // A forced call: the prompt has opened the block.
    Sample {
        text: "<｜DSML｜invoke name=\"g\">\n<｜DSML｜parameter name=\"k\" string=\"true\"></｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        fields: &[TOOLS, ("tool_choice", r#""required""#)],
        content: "",
        reasoning: "",
        calls: &[("g", r#"{"k": ""}"#)],
    },
];

/// Special tokens where the text spells them, bytes elsewhere.
fn tokens(mut text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(char) = text.chars().next() {
        let special =
            [DSML, END_THINK].into_iter().find(|id| text.starts_with(SPECIALS[*id as usize]));
        let len = special.map_or_else(|| char.len_utf8(), |id| SPECIALS[id as usize].len());
        match special {
            Some(id) => tokens.push(id),
            None => tokens.extend(testing::ids(&text[..len])),
        }
        text = &text[len..];
    }
    tokens
}

fn request_of(sample: &Sample) -> ChatRequest {
    let fields: Vec<_> = sample
        .fields
        .iter()
        .map(|(name, json)| (*name, serde_json::from_str(json).unwrap()))
        .collect();
    request(&fields)
}

/// Content, reasoning, and the calls' names and arguments: all but the ids, which are random.
fn seen(response: &ChatCompletionResponse) -> (String, String, Vec<(String, String)>) {
    let message = &response.choices[0].message;
    let calls = message.tool_calls.iter().flatten();
    (
        message.content.clone().unwrap_or_default(),
        message.reasoning_content.clone().unwrap_or_default(),
        calls
            .map(|call| (call.call.function.name.clone(), call.call.function.arguments.clone()))
            .collect(),
    )
}

/// The answer when the tokens come in these pieces.
async fn parse(
    served: &Served,
    sample: &Sample,
    pieces: Vec<Vec<u32>>,
    finish_reason: InferenceFinishReason,
) -> ChatCompletionResponse {
    let chat = Chat::new(Vec::new(), 1);
    let (conversation, _) = chat.convert(served, request_of(sample)).unwrap();
    let generator =
        ChatCompletionRequest::chunk_generator(&conversation, String::new(), String::new());
    let pieces = pieces
        .into_iter()
        .map(|token_ids| InferenceChunk::Tokens { token_ids, logprobs: None })
        .chain([InferenceChunk::Finish { finish_reason }]);
    let chunks = StreamProcessor::new(generator, conversation.parsing_options)
        .with_tokenizer(Arc::clone(served.model.tokenizer()))
        .into_protocol_stream(futures::stream::iter(pieces));
    let mut chunks = std::pin::pin!(chunks);
    let mut response = ChatCompletionResponse::new(String::new(), String::new(), 0, 0, 0);
    while let Some(chunk) = chunks.next().await {
        ChatCompletionRequest::accumulate(&mut response, chunk.unwrap());
    }
    response
}

/// What a client sees of a complete answer that comes in these pieces.
async fn in_pieces(served: &Served, sample: &Sample, pieces: Vec<Vec<u32>>) -> Value {
    let response = parse(served, sample, pieces, InferenceFinishReason::Stop).await;
    let finish_reason = serde_json::to_value(response.choices[0].finish_reason).unwrap();
    let (mut content, reasoning, calls) = seen(&response);
    if sample.fields.iter().any(|(name, _)| *name == "response_format") {
        // What surrounds the JSON becomes a space for each piece.
        content = content.trim().to_owned();
    }
    json!([(content, reasoning, calls), finish_reason])
}

#[tokio::test]
async fn a_message_does_not_depend_on_where_its_tokens_were_cut() {
    let served = testing::served_with_context(10_000).0;
    for sample in &SAMPLES {
        let tokens = tokens(sample.text);
        let whole = in_pieces(&served, sample, vec![tokens.clone()]).await;
        let message = json!([sample.content, sample.reasoning, sample.calls]);
        assert_eq!(whole[0], message, "{}", sample.text);
        let single = tokens.iter().map(|token| vec![*token]).collect();
        assert_eq!(in_pieces(&served, sample, single).await, whole, "{}", sample.text);
        for at in 1..tokens.len() {
            let (before, after) = tokens.split_at(at);
            let cut = in_pieces(&served, sample, vec![before.to_vec(), after.to_vec()]).await;
            assert_eq!(cut, whole, "{} cut at {at}", sample.text);
        }
    }
}

#[tokio::test]
async fn an_answer_that_ends_early_is_the_beginning_of_the_whole() {
    let served = testing::served_with_context(10_000).0;
    for sample in &SAMPLES {
        let tokens = tokens(sample.text);
        for len in 0..tokens.len() {
            let pieces = tokens[..len].iter().map(|token| vec![*token]).collect();
            let answer = parse(&served, sample, pieces, InferenceFinishReason::Length).await;
            let (content, reasoning, calls) = seen(&answer);
            // What may yet become markup or a stop sequence is text when nothing follows.
            let begins = |part: &str, whole: &str| {
                whole.starts_with(
                    part.trim_start().trim_end_matches(['<', '/', '\n', '`', ' ', 'S', 'T', 'O']),
                )
            };
            let at = format!("{} cut at {len}", sample.text);
            assert!(begins(&content, sample.content), "{content:?} of {at}");
            assert!(begins(&reasoning, sample.reasoning), "{reasoning:?} of {at}");
            assert!(calls.len() <= sample.calls.len(), "{calls:?} of {at}");
            for (call, whole) in calls.iter().zip(sample.calls) {
                assert_eq!(call.0, whole.0, "{at}");
                assert!(begins(&call.1, whole.1), "{call:?} of {at}");
            }
        }
    }
}

proptest! {
    /// Markup and text in any order, in any pieces.
    #[test]
    fn pieces_of_any_size_give_the_same_message(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "<", "</", "\n\n", "｜DSML｜", "</think>", "tool_calls>", "invoke name=\"", "f", "\">",
                "parameter name=\"", "\" string=\"true\">", "\" string=\"false\">", "é🌍", "{\"a\": 1}",
                "STOP", "ST", " ",
            ]),
            0..24,
        ),
        sizes in prop::collection::vec(1..9_usize, 1..6),
        sample in 0..SAMPLES.len(),
    ) {
        thread_local! {
            static SERVED: Arc<Served> = Arc::new(testing::served_with_context(10_000).0);
        }
        let served = SERVED.with(Arc::clone);
        let tokens = tokens(&words.concat());
        let mut rest = tokens.as_slice();
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sample = &SAMPLES[sample];
        let (whole, cut) = runtime.block_on(async {
            (in_pieces(&served, sample, vec![tokens]).await, in_pieces(&served, sample, pieces).await)
        });
        prop_assert_eq!(whole, cut);
    }
}
