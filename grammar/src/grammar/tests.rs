use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{DSML, EOS, accepted, ids, vocabulary};
use crate::{Error, Mask, Vocabulary};

/// Whether a grammar takes a whole text and then the end.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let whole = format!("{text}$");
    accepted(vocabulary(), grammar, &whole) == whole
}

#[test]
fn json_of_a_schema_and_nothing_else() {
    let grammar = Grammar::json_schema(&json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "age": { "type": "integer", "minimum": 0 } },
        "required": ["name", "age"],
        "additionalProperties": false,
    }))
    .unwrap();
    for good in [r#"{"name": "Ana", "age": 3}"#, "{\"name\":\"ä\\n\",\n  \"age\":0}"] {
        assert!(takes(&grammar, good), "{good}");
    }
    for bad in [
        r#"{"name": "Ana"}"#,
        r#"{"name": 1, "age": 3}"#,
        r#"{"name": "A", "age": -1}"#,
        " {}",
        "x",
    ] {
        assert!(!takes(&grammar, bad), "{bad}");
    }
    let object = Grammar::json_object();
    assert!(takes(&object, r#"{"a": [1, {"b": null}]}"#));
    assert!(!takes(&object, "[1]") && !takes(&object, r#"{"a": 1"#));
}

#[test]
fn blanks_in_json_come_to_an_end() {
    let grammar = Grammar::json_object();
    let blanks = " ".repeat(100);
    let text = format!("{{{blanks}");
    assert_eq!(accepted(vocabulary(), &grammar, &text).len(), 1 + 32);
}

#[test]
fn a_regex_from_end_to_end() {
    let grammar = Grammar::regex(r"\d{4}/\d\d\/[a-c]+");
    assert!(takes(&grammar, "2026/11/abc"));
    assert!(!takes(&grammar, "2026/11/") && !takes(&grammar, "x2026/11/a"));
    assert!(takes(&Grammar::regex("a\nb\\\n?"), "a\nb"));
    assert!(takes(&Grammar::regex(r"\\/"), r"\/"));
}

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "description": "Where" },
            "days": { "type": "integer" },
            "unit": { "type": "string", "enum": ["C", "F"] },
            "code": { "type": "string", "pattern": "^[A-Z]{2}$" },
            "near": { "$ref": "#/$defs/point" },
        },
        "required": ["city", "unit"],
        "additionalProperties": false,
        "$defs": { "point": { "type": "array", "items": { "type": "number" }, "minItems": 2, "maxItems": 2 } },
    })
}

fn call(parameters: &[(&str, bool, &str)]) -> String {
    let parameters: String = parameters
        .iter()
        .map(|(key, is_string, value)| {
            format!("<¦parameter name=\"{key}\" string=\"{is_string}\">{value}</¦parameter>\n")
        })
        .collect();
    format!("<¦invoke name=\"weather\">\n{parameters}</¦invoke>\n")
}

fn block(calls: &str) -> String {
    format!("\n\n<¦tool_calls>\n{calls}</¦tool_calls>")
}

const REQUIRED: ToolUse = ToolUse {
    dsml: DSML,
    is_required: true,
    is_opened: false,
    parallel_calls: ParallelCalls::Allowed,
};

fn weather_tools(is_strict: bool, tool_use: ToolUse) -> Grammar {
    let parameters = weather();
    let other = json!({ "type": "object", "properties": {} });
    let tools = [
        Tool { name: "weather", parameters: &parameters, is_strict },
        Tool { name: "now", parameters: &other, is_strict },
    ];
    Grammar::tool_calls(&tools, &tool_use, None).unwrap()
}

#[test]
fn strict_calls_match_their_schema() {
    let grammar = weather_tools(true, REQUIRED);
    let good = [
        call(&[("city", true, "Lima"), ("unit", true, "C")]),
        call(&[("city", true, "a < b </ c\n\"x\""), ("days", false, "12"), ("unit", true, "F")]),
        call(&[
            ("city", true, ""),
            ("unit", true, "C"),
            ("code", false, "\"PE\""),
            ("near", false, "[1.5, 2]"),
        ]),
    ];
    for calls in &good {
        assert!(takes(&grammar, &block(calls)), "{calls}");
    }
    assert!(takes(&grammar, &block(&(good.concat() + "<¦invoke name=\"now\">\n</¦invoke>\n"))));
    let bad = [
        call(&[("city", true, "Lima")]),
        call(&[("unit", true, "C"), ("city", true, "Lima")]),
        call(&[("city", true, "Lima"), ("unit", true, "K")]),
        call(&[("city", true, "Lima"), ("days", false, "\"1\""), ("unit", true, "C")]),
        call(&[("city", true, "Lima"), ("unit", true, "C"), ("code", false, "\"Peru\"")]),
        call(&[("city", true, "Lima"), ("unit", true, "C"), ("near", false, "[1]")]),
        call(&[("city", true, "Lima"), ("unit", true, "C"), ("more", true, "")]),
        "<¦invoke name=\"other\">\n</¦invoke>\n".to_owned(),
        String::new(),
    ];
    for calls in &bad {
        assert!(!takes(&grammar, &block(calls)), "{calls}");
    }
    assert!(!takes(&grammar, "It is warm."));
}

#[test]
fn loose_calls_name_a_tool_and_are_well_formed() {
    let grammar = weather_tools(false, REQUIRED);
    assert!(takes(
        &grammar,
        &block(&call(&[("anything", false, "{\"a\": 1}"), ("city", true, "x")]))
    ));
    assert!(takes(&grammar, &block(&call(&[]))));
    assert!(!takes(&grammar, &block(&call(&[("a", false, "{")]))));
    assert!(!takes(&grammar, &block("<¦invoke name=\"other\">\n</¦invoke>\n")));
}

#[test]
fn text_may_come_before_calls_that_are_not_required() {
    let grammar = weather_tools(true, ToolUse { is_required: false, ..REQUIRED });
    let calls = block(&call(&[("city", true, "Lima"), ("unit", true, "C")]));
    for good in ["", "It is < warm.\n", &calls, &format!("Let me see.{calls}")] {
        assert!(takes(&grammar, good), "{good:?}");
    }
    assert!(!takes(&grammar, &block("")));
    assert!(!takes(&grammar, &format!("{calls} and more")));
}

#[test]
fn a_single_call_and_an_opened_block() {
    let one = call(&[("city", true, "Lima"), ("unit", true, "C")]);
    let single = ToolUse { parallel_calls: ParallelCalls::Forbidden, ..REQUIRED };
    assert!(takes(&weather_tools(true, single), &block(&one)));
    assert!(!takes(&weather_tools(true, single), &block(&(one.clone() + &one))));
    let opened = weather_tools(true, ToolUse { is_opened: true, ..REQUIRED });
    assert!(takes(&opened, &format!("{one}</¦tool_calls>")));
    assert!(!takes(&opened, &block(&one)));
}

#[test]
fn an_answer_of_a_format_or_calls() {
    let parameters = json!({ "type": "object" });
    let tools = [Tool { name: "weather", parameters: &parameters, is_strict: false }];
    let tool_use = ToolUse { is_required: false, ..REQUIRED };
    let answer = Grammar::json_object();
    let grammar = Grammar::tool_calls(&tools, &tool_use, Some(&answer)).unwrap();
    assert!(takes(&grammar, "{\"a\": 1}") && takes(&grammar, &block(&call(&[]))));
    assert!(!takes(&grammar, "Hello") && !takes(&grammar, &format!("{{}}{}", block(&call(&[])))));
    let own = Grammar::lark("start: a\na: \"b\"");
    let error = Grammar::tool_calls(&tools, &tool_use, Some(&own)).unwrap_err();
    assert!(error.to_string().contains("combined with tools"), "{error}");
}

#[test]
fn a_parameter_that_dsml_cannot_name_is_refused() {
    let parameters = json!({ "type": "object", "properties": { "two words": {} } });
    let tools = [Tool { name: "f", parameters: &parameters, is_strict: true }];
    let error = Grammar::tool_calls(&tools, &REQUIRED, None).unwrap_err();
    assert!(error.to_string().contains("\"two words\""), "{error}");
}

/// Compiles and walks a grammar along its first allowed tokens; the walk may get stuck.
fn walk(vocabulary: &Vocabulary, grammar: &Grammar) -> Result<usize, Error> {
    let mut matcher = vocabulary.compile(grammar)?;
    for num_tokens in 0..50 {
        let next = matcher.mask()?.tokens().next();
        match next {
            Some(EOS) | None => return Ok(num_tokens),
            Some(token) => matcher.accept(token)?,
        }
    }
    Ok(50)
}

#[test]
fn hostile_grammars_are_refused_or_bounded() {
    let mut deep = json!({ "type": "string" });
    for _ in 0..100 {
        deep = json!({ "type": "array", "items": deep });
    }
    let many: Vec<_> = (0..20_000).map(|i| format!("v{i}")).collect();
    let branches: Vec<_> = (0..300)
        .map(|i| json!({ "type": "object", "properties": { format!("p{i}"): { "pattern": "(a|b)*c" } } }))
        .collect();
    let schema = |schema: &Value| Grammar::json_schema(schema).unwrap();
    let hostile = [
        schema(&deep),
        schema(&json!({ "enum": many })),
        schema(&json!({ "anyOf": branches })),
        schema(&json!({ "$ref": "#" })),
        schema(
            &json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
        ),
        schema(&json!({ "type": "string", "minLength": 1_000_000_000 })),
        schema(&json!({ "type": "array", "items": {}, "minItems": 100_000 })),
        schema(&json!({ "type": "string", "pattern": "(x+x+)+y" })),
        Grammar::regex("(a*)*b"),
        Grammar::regex("((a{1,100}){1,100}){1,100}"),
        Grammar::regex("(.*a.{500}){50}"),
        Grammar::regex(&"(".repeat(1000)),
        Grammar::lark("start: start start | \"a\""),
        Grammar::lark("start: start"),
        Grammar::lark("start: x\nx: y\ny: x"),
        Grammar::lark(""),
    ];
    let vocabulary = vocabulary();
    for grammar in &hostile {
        // The bounds are counts: one that is missing shows as a test that takes minutes.
        let text: String = grammar.as_str().chars().take(60).collect();
        println!("{:?}: {text}", walk(vocabulary, grammar));
    }
    let long = Grammar::lark("a".repeat(BYTES_MAX + 1));
    let refused = vocabulary.compile(&long).unwrap_err();
    assert_eq!(refused, Error::TooLarge { unit: "bytes", actual: BYTES_MAX + 1, most: BYTES_MAX });
    assert!(matches!(
        vocabulary.compile(&hostile[0]),
        Err(Error::TooLarge { unit: "levels of brackets", .. })
    ));
}

#[test]
fn markup_is_never_text() {
    let vocabulary = vocabulary();
    let mask = vocabulary.compile(&Grammar::regex("(?s:.*)")).unwrap().mask().unwrap();
    assert!(mask.allows(ids("a")[0]) && mask.allows(EOS));
    assert!(!mask.allows(DSML) && !mask.allows(crate::testing::THINK_END));
    assert!(!mask.allows(299), "a token without text");
}

/// A random walk along a grammar, and whether it came to its end. Tokens that end a string or a list are favoured, or it
/// would hardly ever.
fn random_answer(grammar: &Grammar, seed: u64) -> Option<String> {
    let mut matcher = vocabulary().compile(grammar).unwrap();
    let mut state = seed;
    let mut tokens = Vec::new();
    while tokens.len() < 3000 {
        let mask = matcher.mask().unwrap();
        if mask.allows(EOS) {
            return Some(String::from_utf8(vocabulary().decode(&tokens)).unwrap());
        }
        let allowed: Vec<_> = mask.tokens().collect();
        let ends: Vec<_> = ids("\"]}").into_iter().filter(|id| allowed.contains(id)).collect();
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = (state >> 33) as usize;
        let from = if random.is_multiple_of(3) && !ends.is_empty() { &ends } else { &allowed };
        let token = from[random / 3 % from.len()];
        matcher.accept(token).unwrap();
        tokens.push(token);
    }
    None
}

#[test]
fn bounds_that_would_not_hold_are_refused() {
    for (schema, part) in [
        (json!({ "items": { "maximum": 9_007_199_254_740_993_i64 } }), "maximum 9007199254740993"),
        (
            json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 0.001 }),
            "exclusiveMinimum 0",
        ),
        (
            json!({ "type": "number", "exclusiveMaximum": -2, "minimum": -2.5 }),
            "exclusiveMaximum -2",
        ),
    ] {
        let error = Grammar::json_schema(&schema).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for schema in [
        json!({ "exclusiveMinimum": 0, "maximum": 1 }),
        json!({ "type": "integer", "exclusiveMinimum": 0, "maximum": 0.5, "title": "none" }),
        json!({ "properties": { "maximum": { "type": "number" } } }),
    ] {
        let is_refused = Grammar::json_schema(&schema).is_err();
        assert_eq!(is_refused, schema["title"] == "none", "{schema}");
    }
}

fn schemas() -> Vec<(String, Value)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/structured/schemas.json");
    let entries: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let name = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
    entries.into_iter().map(|entry| (name(&entry), entry["schema"].clone())).collect()
}

#[test]
fn whatever_a_schema_lets_through_validates() {
    let schemas = schemas();
    assert_eq!(schemas.len(), 50);
    for (name, schema) in schemas {
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let grammar = Grammar::json_schema(&schema).unwrap();
        let mut num_done = 0;
        for seed in 0..6 {
            let Some(answer) = random_answer(&grammar, seed) else { continue };
            num_done += 1;
            let value: Value = serde_json::from_str(&answer).unwrap();
            assert!(validator.is_valid(&value), "{name}: {answer}");
        }
        assert!(num_done > 0, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_mask_of_all_but_some(size in 1_usize..200, forbidden in proptest::collection::vec(0_u32..250, 0..5)) {
        let mask = Mask::all_but(size, &forbidden);
        let expected: Vec<_> = (0..size as u32).filter(|id| !forbidden.contains(id)).collect();
        prop_assert_eq!(mask.tokens().collect::<Vec<_>>(), expected);
    }

    /// Whatever is sent as a grammar, nothing panics and nothing runs away.
    #[test]
    fn any_text_is_refused_or_bounded(text in "(start: )?[a-z\"/()|*+?{}\\[\\]0-9 %:\n.]{0,40}") {
        let vocabulary = vocabulary();
        let _ = walk(vocabulary, &Grammar::lark(text.clone()));
        let _ = walk(vocabulary, &Grammar::regex(&text));
    }
}
