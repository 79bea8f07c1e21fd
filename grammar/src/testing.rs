//! A vocabulary for tests: the letters, some words and V4's markup.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::{Grammar, Matcher, Vocabulary};

pub(crate) const EOS: u32 = 1;
pub(crate) const THINK_END: u32 = 2;
pub(crate) const DSML: u32 = 3;

/// All bytes as single tokens, some words, and markup.
pub(crate) fn vocabulary() -> &'static Vocabulary {
    static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(new_vocabulary);
    &VOCABULARY
}

/// The same, with no grammar compiled yet.
pub(crate) fn new_vocabulary() -> Vocabulary {
    Vocabulary::new(tokenizer_json().to_string().as_bytes(), VOCAB_SIZE, EOS).unwrap()
}

pub(crate) const VOCAB_SIZE: usize = 300;

fn tokenizer_json() -> Value {
    let added = ["<begin>", "<end>", "</think>", "｜DSML｜"];
    let added: Vec<_> = (0..)
        .zip(added)
        .map(|(id, content): (u32, _)| json!({ "id": id, "content": content, "special": id < 2 }))
        .collect();
    let mut vocab = Map::new();
    for byte in 0..=255_u8 {
        vocab.insert(byte_char(byte).to_string(), json!(vocab.len() + 4));
    }
    for word in ["{\"", "\":", "true", "\n\n", "tool", "_calls>", "invoke", " name=\"", "\">\n"] {
        let word: String = word.bytes().map(byte_char).collect();
        vocab.insert(word, json!(vocab.len() + 4));
    }
    json!({ "added_tokens": added, "decoder": { "type": "ByteLevel" }, "model": { "vocab": vocab } })
}

/// GPT-2's character for a byte.
fn byte_char(byte: u8) -> char {
    let shows = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if shows(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !shows(byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}

/// The ids of a text, byte by byte; `¦` stands for `｜DSML｜`, `$` for the end.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for char in text.chars() {
        match char {
            '¦' => ids.push(DSML),
            '$' => ids.push(EOS),
            char => ids.extend(char.to_string().bytes().map(|byte| u32::from(byte) + 4)),
        }
    }
    ids
}

/// How much of `text` a grammar takes: all of it, or the part before the first token that may not follow.
pub(crate) fn accepted<'a>(vocabulary: &Vocabulary, grammar: &Grammar, text: &'a str) -> &'a str {
    let mut matcher: Matcher = vocabulary.compile(grammar).unwrap();
    for (index, char) in text.char_indices() {
        for id in ids(&char.to_string()) {
            if !matcher.mask().unwrap().allows(id) {
                return &text[..index];
            }
            matcher.accept(id).unwrap();
        }
    }
    text
}
