//! What a model writes, cut into tokens anywhere.
//!
//! The same text means the same message, whatever tokens it comes in: a model may spell a word by its letters. The
//! special tokens alone are what they are.

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use switchyard_coordinator::chat::messages::Messages;
use switchyard_coordinator::chat::protocol::{Protocol, Request};
use switchyard_coordinator::chat::request::ChatRequest;
use switchyard_coordinator::chat::responses::Call;
use switchyard_coordinator::chat::{Chat, Generate, Served};
use switchyard_coordinator::engine::request::{FinishReason, GenerateEvent, GeneratedToken};
use tokio::runtime::Runtime;

use crate::engine::Engine;
use crate::schema::Dice;

/// Tokens that have a meaning in an answer; the first two are spelled in markup.
const SPECIALS: [&str; 4] = ["｜DSML｜", "</think>", "<think>", "<｜User｜>"];
/// Longest text that is looked at, in bytes.
const TEXT_BYTES_MAX: usize = 2048;
/// Longest piece that is given to the tokenizer on its own, in bytes.
const PIECE_BYTES_MAX: usize = 12;

/// Fields that two answers never have in common, and those that count tokens.
const FORGOTTEN: [&str; 8] = [
    "id",
    "call_id",
    "signature",
    "encrypted_content",
    "created",
    "created_at",
    "completed_at",
    "usage",
];

/// What an answer may answer: the dialect, and fields of the request beside the model and the question.
const ASKED: [(Dialect, &str); 12] = [
    (Dialect::Chat, "{}"),
    (Dialect::Chat, r#"{"thinking": {"type": "enabled"}}"#),
    (Dialect::Chat, r#"{"stop": ["STOP", "\n\n", "é"]}"#),
    (Dialect::Chat, r#"{"thinking": {"type": "enabled"}, "stop": "STOP"}"#),
    (Dialect::Chat, r#"{"tools": TOOLS}"#),
    (Dialect::Chat, r#"{"tools": TOOLS, "thinking": {"type": "enabled"}}"#),
    (Dialect::Chat, r#"{"tools": TOOLS, "tool_choice": "required", "stop": "STOP"}"#),
    (Dialect::Messages, r#"{"max_tokens": 9, "tools": TOOLS}"#),
    (
        Dialect::Messages,
        r#"{"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": TOOLS}"#,
    ),
    (Dialect::Messages, r#"{"max_tokens": 9, "stop_sequences": ["STOP"]}"#),
    (Dialect::Responses, r#"{"tools": TOOLS}"#),
    (Dialect::Responses, r#"{"tools": TOOLS, "reasoning": {"effort": "high"}}"#),
];

#[derive(Clone, Copy, Debug)]
enum Dialect {
    Chat,
    Messages,
    Responses,
}

/// A coordinator whose engine writes what the fuzzer wants.
#[derive(Debug)]
pub struct Outputs {
    runtime: Runtime,
    engine: Arc<Engine>,
    chat: Chat,
    served: Arc<Served>,
    specials: [u32; SPECIALS.len()],
    /// Token of each byte.
    bytes: Vec<u32>,
    asked: Vec<(Dialect, Vec<u8>)>,
}

// === impl Outputs ===

impl Outputs {
    /// Reads the demo model's files.
    #[must_use]
    pub fn new() -> Self {
        let model = crate::model();
        let id = |token: &str| model.tokenizer().token_to_id(token).expect("the family has it");
        let specials = SPECIALS.map(id);
        let bytes = (0..=u8::MAX).map(|byte| id(&byte_char(byte).to_string())).collect();
        let engine = Engine::new(model.config().vocab_size, model.context_length());
        let served = Served { model, engine: Arc::clone(&engine) as Arc<dyn Generate> };
        let chat = Chat::new(vec![served], 1);
        let served = Arc::clone(chat.model(crate::MODEL).expect("it is served"));
        let asked = ASKED.map(|(dialect, fields)| (dialect, dialect.body(fields))).to_vec();
        Self { runtime: crate::runtime(), engine, chat, served, specials, bytes, asked }
    }

    /// Parses one answer twice: the first byte says what it answers, the second where it is cut and why it ends, the
    /// rest is its text.
    ///
    /// # Panics
    /// When the two differ.
    pub fn check(&self, data: &[u8]) {
        let [kind, how, text @ ..] = data else { return };
        let (dialect, body) = &self.asked[usize::from(*kind) % self.asked.len()];
        let text = &text[..text.len().min(TEXT_BYTES_MAX)];
        let reason = if how & 1 == 0 { FinishReason::Stop } else { FinishReason::Length };
        let letters = self.tokens(text, |piece| piece.iter().map(|_| 1).collect());
        let mut dice = Dice::new(&data[..2]);
        let words = self.tokens(text, |mut piece| {
            let mut lens = Vec::new();
            while !piece.is_empty() {
                let len = (1 + dice.roll(PIECE_BYTES_MAX)).min(piece.len());
                lens.push(len);
                piece = &piece[len..];
            }
            lens
        });
        let by_letters = self.parse(*dialect, body, &letters, reason);
        let by_words = self.parse(*dialect, body, &words, reason);
        assert_eq!(by_letters, by_words, "{dialect:?} {}", String::from_utf8_lossy(body));
    }

    /// Special tokens where the text spells them; what lies between is cut into pieces of the lengths that `cut` says.
    fn tokens(&self, mut text: &[u8], mut cut: impl FnMut(&[u8]) -> Vec<usize>) -> Vec<u32> {
        let mut tokens = Vec::new();
        while !text.is_empty() {
            let special = SPECIALS.iter().position(|special| text.starts_with(special.as_bytes()));
            if let Some(special) = special {
                tokens.push(self.specials[special]);
                text = &text[SPECIALS[special].len()..];
                continue;
            }
            let begins = |at: &usize| {
                SPECIALS.iter().any(|special| text[*at..].starts_with(special.as_bytes()))
            };
            let (mut plain, rest) =
                text.split_at((1..text.len()).find(begins).unwrap_or(text.len()));
            for len in cut(plain) {
                let (piece, after) = plain.split_at(len);
                tokens.extend(self.piece(piece));
                plain = after;
            }
            text = rest;
        }
        tokens
    }

    /// A piece in the tokenizer's words, or in bytes when it is none of text.
    fn piece(&self, piece: &[u8]) -> Vec<u32> {
        let model = &self.served.model;
        match std::str::from_utf8(piece) {
            Ok(text) if piece.len() > 1 => {
                model.encode(&model.render_text(text, false)).expect("any text has tokens")
            }
            _ => piece.iter().map(|byte| self.bytes[usize::from(*byte)]).collect(),
        }
    }

    fn parse(&self, dialect: Dialect, body: &[u8], tokens: &[u32], reason: FinishReason) -> Value {
        let token = |token_id: &u32| {
            let (token_id, top_logprobs) = (*token_id, Vec::new());
            GenerateEvent::Token(GeneratedToken { token_id, logprob: None, top_logprobs })
        };
        let end = GenerateEvent::Finished(reason);
        self.engine.answer(tokens.iter().map(token).chain([end]).collect());
        match dialect {
            Dialect::Chat => self.collect(ChatRequest::from_slice(body)),
            Dialect::Messages => self.collect(Messages::from_slice(body)),
            Dialect::Responses => {
                let call = Call::from_slice(body).and_then(Call::into_request);
                self.collect(call.map(|(request, _)| request))
            }
        }
    }

    fn collect<P: Protocol<Response: Serialize>, E: Debug>(
        &self,
        request: Result<Request<P>, E>,
    ) -> Value {
        let request = request.expect("the request is one of ours");
        let answer =
            self.runtime.block_on(async { self.chat.start(request).await?.collect().await });
        let answer = answer.unwrap_or_else(|error| panic!("an answer ends with {error:?}"));
        let mut answer = serde_json::to_value(answer).expect("answers are JSON");
        forget(&mut answer);
        answer
    }
}

impl Default for Outputs {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Dialect ===

impl Dialect {
    fn body(self, fields: &str) -> Vec<u8> {
        let (questions, tools) = match self {
            Self::Chat => ("messages", json!([chat_tool("f"), chat_tool("g")])),
            Self::Messages => {
                let tool = |name| json!({ "name": name, "input_schema": { "type": "object" } });
                ("messages", json!([tool("f"), tool("g")]))
            }
            Self::Responses => {
                let tool = |name| {
                    let parameters = json!({ "type": "object" });
                    json!({ "type": "function", "name": name, "parameters": parameters, "strict": false })
                };
                ("input", json!([tool("f"), tool("g")]))
            }
        };
        let fields = fields.replace("TOOLS", &tools.to_string());
        let mut body: Value = serde_json::from_str(&fields).expect("written above");
        body["model"] = crate::MODEL.into();
        body[questions] = json!([{ "role": "user", "content": "hi" }]);
        body.to_string().into_bytes()
    }
}

fn chat_tool(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name } })
}

/// Takes out [`FORGOTTEN`].
fn forget(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in FORGOTTEN {
                fields.shift_remove(name);
            }
            fields.values_mut().for_each(forget);
        }
        Value::Array(values) => values.iter_mut().for_each(forget),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The character that stands for a byte in a byte-level vocabulary.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count();
    u32::try_from(before).ok().and_then(|before| char::from_u32(256 + before)).unwrap_or('\u{fffd}')
}
