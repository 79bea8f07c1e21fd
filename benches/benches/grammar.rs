//! What structured output costs beside the model: compiling a schema for the first time and again, and the mask and bookkeeping of one token, with
//! the demo model's vocabulary and with one of V4's size (made up: 128,000 words over letters, digits and marks).
//!
//! `cargo bench -p switchyard-benches --bench grammar [-- FILTER]`
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Map, Value, json};
use switchyard_grammar::{Grammar, Matcher, Vocabulary};

const EOS: u32 = 1;

/// Schemas of different ages are different grammars.
fn schema(age_max: u32) -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "age": { "type": "integer", "minimum": 0, "maximum": age_max },
            "tags": { "type": "array", "items": { "enum": ["red", "green", "blue"] } },
            "address": { "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] },
        },
        "required": ["name", "age", "tags", "address"],
        "additionalProperties": false,
    })
}

fn demo() -> Vocabulary {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo-flash/tokenizer.json");
    Vocabulary::new(&std::fs::read(path).unwrap(), 1024, EOS).unwrap()
}

/// As many words as V4 has, each once, most of three to eight characters.
fn large() -> Vocabulary {
    const VOCAB_SIZE: usize = 129_280;
    let alphabet: Vec<char> = ('!'..='~').chain(['Ġ', 'Ċ']).collect();
    let mut vocab = Map::new();
    for char in ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń') {
        vocab.insert(char.to_string(), json!(vocab.len() + 2));
    }
    let mut state = 1_u64;
    while vocab.len() < VOCAB_SIZE - 2 {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        };
        let len = 3 + next() % 6;
        let word: String = (0..len).map(|_| alphabet[next() % alphabet.len()]).collect();
        let id = vocab.len() + 2;
        vocab.entry(word).or_insert(json!(id));
    }
    let added = json!([{ "id": 0, "content": "<b>", "special": true }, { "id": 1, "content": "<e>", "special": true }]);
    let json = json!({ "added_tokens": added, "decoder": { "type": "ByteLevel" }, "model": { "vocab": vocab } });
    Vocabulary::new(json.to_string().as_bytes(), VOCAB_SIZE, EOS).unwrap()
}

/// One token: its mask, and a token of it taken. Begins anew at the end of an answer.
fn token(vocabulary: &Vocabulary, grammar: &Grammar, matcher: &mut Matcher, random: &mut u64) {
    let mask = matcher.mask().unwrap();
    if mask.allows(EOS) {
        *matcher = vocabulary.compile(grammar).unwrap();
        return;
    }
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let allowed: Vec<u32> = mask.tokens().take(64).collect();
    matcher.accept(allowed[(*random >> 33) as usize % allowed.len()]).unwrap();
}

fn grammar(c: &mut Criterion) {
    let grammar = Grammar::json_schema(&schema(150)).unwrap();
    // More than are kept compiled.
    let others: Vec<_> =
        (200..300).map(|age_max| Grammar::json_schema(&schema(age_max)).unwrap()).collect();
    for (name, vocabulary) in [("demo", demo()), ("129280", large())] {
        c.bench_with_input(BenchmarkId::new("compile", name), &vocabulary, |b, vocabulary| {
            let mut others = others.iter().cycle();
            b.iter(|| vocabulary.compile(others.next().unwrap()).unwrap());
        });
        c.bench_with_input(
            BenchmarkId::new("compile again", name),
            &vocabulary,
            |b, vocabulary| {
                b.iter(|| vocabulary.compile(&grammar).unwrap());
            },
        );
        c.bench_with_input(BenchmarkId::new("token", name), &vocabulary, |b, vocabulary| {
            let mut matcher = vocabulary.compile(&grammar).unwrap();
            let mut random = 1;
            b.iter(|| token(vocabulary, &grammar, &mut matcher, &mut random));
        });
    }
}

criterion_group!(benches, grammar);
criterion_main!(benches);
