use super::*;
use crate::Mask;
use crate::testing::{EOS, new_vocabulary};

/// The masks of an answer drawn by `seed`.
fn masks(mut matcher: Matcher, seed: u64) -> Vec<Mask> {
    let mut masks = Vec::new();
    let mut random = seed;
    while masks.len() < 200 {
        let mask = matcher.mask().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let tokens: Vec<u32> = mask.tokens().collect();
        let token = tokens[(random >> 33) as usize % tokens.len()];
        masks.push(mask);
        if token == EOS {
            break;
        }
        matcher.accept(token).unwrap();
    }
    masks
}

#[test]
fn a_kept_grammar_is_as_good_as_a_new_one() {
    let schemas: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/structured/schemas.json")).unwrap();
    let kept = new_vocabulary();
    for schema in schemas {
        let grammar = Grammar::json_schema(&schema["schema"]).unwrap();
        for seed in 0..3 {
            let expect = masks(new_vocabulary().compile(&grammar).unwrap(), seed);
            assert_eq!(masks(kept.compile(&grammar).unwrap(), seed), expect, "{}", schema["name"]);
        }
    }
    assert_eq!(kept.kept().len(), KEPT_MAX.get());
}

#[test]
fn what_is_refused_is_not_kept() {
    let vocabulary = new_vocabulary();
    let grammar = Grammar::lark("no grammar".to_owned());
    for _ in 0..2 {
        assert!(matches!(vocabulary.compile(&grammar), Err(Error::Refused(_))));
    }
    assert_eq!(vocabulary.kept().len(), 0);
}
