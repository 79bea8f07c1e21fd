use super::*;

const V4_FLASH: &str = include_str!("v4-flash.json");

fn edited(edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> String {
    let mut value: serde_json::Value = serde_json::from_str(V4_FLASH).unwrap();
    edit(value.as_object_mut().unwrap());
    value.to_string()
}

#[test]
fn v4_flash_has_the_published_layer_census() {
    let config = ModelConfig::from_json(V4_FLASH).unwrap();
    let count = |want: fn(&AttentionKind) -> bool| config.layers.iter().filter(|k| want(k)).count();
    assert_eq!(count(|kind| matches!(kind, AttentionKind::SlidingWindow)), 2);
    assert_eq!(count(|kind| matches!(kind, AttentionKind::Csa { ratio: 4 })), 21);
    assert_eq!(count(|kind| matches!(kind, AttentionKind::Hca { ratio: 128 })), 20);
    assert!(config.is_hash_layer(2) && !config.is_hash_layer(3));
}

#[test]
fn v4_pro_has_the_published_layer_census() {
    let config = ModelConfig::v4_pro();
    let count = |want: fn(&AttentionKind) -> bool| config.layers.iter().filter(|k| want(k)).count();
    assert_eq!(config.num_hidden_layers, 61);
    assert_eq!(count(|kind| matches!(kind, AttentionKind::SlidingWindow)), 0);
    assert_eq!(count(|kind| matches!(kind, AttentionKind::Csa { ratio: 4 })), 30);
    assert_eq!(count(|kind| matches!(kind, AttentionKind::Hca { ratio: 128 })), 31);
}

#[test]
fn the_first_layers_are_a_model_of_their_own() {
    let config = ModelConfig::v4_flash().first_layers(2);
    assert_eq!((config.num_hidden_layers, config.num_hash_layers), (2, 2));
    assert_eq!(config.layers, [AttentionKind::SlidingWindow; 2]);
    assert_eq!(ModelConfig::v4_flash().first_layers(1000), ModelConfig::v4_flash());
}

#[test]
fn every_impossible_value_is_named() {
    let text = edited(|config| {
        config["hidden_size"] = 0.into();
        config["o_groups"] = 7.into();
        config["num_experts_per_tok"] = 300.into();
        config["rms_norm_eps"] = (-1.0).into();
        config["model_type"] = "llama".into();
    });
    let message = ModelConfig::from_json(&text).unwrap_err().to_string();
    for field in
        ["hidden_size is 0", "o_groups", "num_experts_per_tok", "rms_norm_eps is -1", "llama"]
    {
        assert!(message.contains(field), "{field} is not named in: {message}");
    }
}

#[test]
fn a_missing_field_is_a_parse_error() {
    let text = edited(|config| drop(config.remove("head_dim")));
    let error = ModelConfig::from_json(&text).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("head_dim"), "{source}");
}

#[test]
fn short_compress_ratios_are_refused_not_panicked_on() {
    let text = edited(|config| config["compress_ratios"] = serde_json::json!([0, 4]));
    assert!(matches!(ModelConfig::from_json(&text), Err(Error::Invalid(_))));
}
