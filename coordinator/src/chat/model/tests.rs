use serde_json::json;

use super::*;
use crate::testing::{self, BOS, CONTEXT_LENGTH, ModelDir, USER};

fn load(change: impl FnOnce(&mut ModelDir)) -> Result<Model, Error> {
    let mut dir = ModelDir::new();
    change(&mut dir);
    Model::load(&dir.options())
}

/// The whole chain of messages, without the folder.
fn message(error: &Error) -> String {
    crate::chat::usage::Chain(error).to_string()
}

#[test]
fn a_good_folder_loads() {
    let model = load(|_| {}).unwrap();
    assert_eq!(model.context_length(), CONTEXT_LENGTH);
    assert!(!model.default_thinking());
    assert!(model.system_fingerprint().starts_with("fp_"), "{}", model.system_fingerprint());
    assert!(model.system_fingerprint().contains("_official_"));
    let other = load(|dir| dir.config["rms_norm_eps"] = 1e-5.into()).unwrap();
    assert_ne!(model.system_fingerprint(), other.system_fingerprint());
}

#[test]
fn the_demo_model_loads() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo-flash");
    let model = Model::load(&ModelOptions::new("demo-flash", dir)).unwrap();
    let ids = model.encode(&model.render_text("Hello, wörld!", false)).unwrap();
    assert_eq!(model.tokenizer().decode(&ids, false).unwrap(), "Hello, wörld!");
}

#[test]
fn text_that_spells_a_special_token_stays_text() {
    let model = load(|_| {}).unwrap();
    let ids = model.encode(&model.render_text("<｜User｜>", false)).unwrap();
    assert_eq!(ids, testing::ids("<｜User｜>"));
    assert!(!ids.contains(&USER) && !ids.contains(&BOS));
}

#[test]
fn thinking_is_the_option_then_the_file_then_on() {
    for (file, option, expect) in [
        (None, None, true),
        (Some(json!({})), None, true),
        (Some(json!({ "default_thinking": false })), None, false),
        (Some(json!({ "default_thinking": false })), Some(true), true),
        (None, Some(false), false),
    ] {
        let mut dir = ModelDir::new();
        dir.generation_config = file;
        let options = ModelOptions { default_thinking: option, ..dir.options() };
        assert_eq!(Model::load(&options).unwrap().default_thinking(), expect);
    }
}

#[test]
fn a_limit_within_the_models_own_is_kept() {
    let dir = ModelDir::new();
    let load = |max_model_len| Model::load(&ModelOptions { max_model_len, ..dir.options() });
    assert_eq!(load(Some(100)).unwrap().context_length(), 100);
    for asked in [0, 1, CONTEXT_LENGTH + 1] {
        let error = load(Some(asked)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("max_model_len {asked} is not within 2..=1024")),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused_by_name() {
    type Spoil = fn(&mut ModelDir);
    let cases: [(Spoil, &str); 7] = [
        (|dir| dir.config["vocab_size"] = 265.into(), "has id 265, but vocab_size is 265"),
        (
            |dir| dir.config["bos_token_id"] = 2.into(),
            "\"<｜begin▁of▁sentence｜>\" has id 0, but bos_token_id is 2",
        ),
        (
            |dir| dir.config["eos_token_id"] = 0.into(),
            "\"<｜end▁of▁sentence｜>\" has id 1, but eos_token_id is 0",
        ),
        (
            |dir| {
                let added = dir.tokenizer["added_tokens"].as_array_mut().unwrap();
                added.retain(|token| token["content"] != "</think>");
            },
            "the special token \"</think>\" is missing",
        ),
        (
            |dir| {
                let byte = testing::byte_char(b'z').to_string();
                dir.tokenizer["model"]["vocab"].as_object_mut().unwrap().shift_remove(&byte);
            },
            "'z' does not survive",
        ),
        (
            |dir| {
                let byte = testing::byte_char(0xF4).to_string();
                dir.tokenizer["model"]["vocab"].as_object_mut().unwrap().shift_remove(&byte);
            },
            "does not survive",
        ),
        (
            |dir| dir.tokenizer["normalizer"] = json!({ "type": "Lowercase" }),
            "'A' does not survive",
        ),
    ];
    for (spoil, expect) in cases {
        let error = load(spoil).expect_err(expect);
        let text = message(&error);
        assert!(text.contains("tokenizer.json") && text.contains(expect), "{text}");
    }
}

#[test]
fn a_tokenizer_that_cuts_or_pads_does_neither_here() {
    let model = load(|dir| {
        dir.tokenizer["truncation"] = json!({
            "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
        });
        dir.tokenizer["padding"] = json!({
            "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<｜▁pad▁｜>",
        });
    })
    .unwrap();
    assert_eq!(
        model.encode(&model.render_text("longer than four", false)).unwrap(),
        testing::ids("longer than four")
    );
}

#[test]
fn missing_and_broken_files_are_named() {
    for (file, content, expect) in [
        ("config.json", None, "cannot read"),
        ("tokenizer.json", None, "cannot read"),
        ("config.json", Some("{"), "cannot be served: config.json is not a DeepSeek-V4"),
        ("tokenizer.json", Some("{}"), "cannot be parsed"),
        ("generation_config.json", Some("{\"default_thinking\": \"yes\"}"), "expected a boolean"),
    ] {
        let dir = ModelDir::new();
        let options = dir.options();
        match content {
            Some(content) => std::fs::write(dir.path(file), content).unwrap(),
            None => std::fs::remove_file(dir.path(file)).unwrap(),
        }
        let text = message(&Model::load(&options).expect_err(file));
        assert!(text.contains(file) && text.contains(expect), "{text}");
    }
}
