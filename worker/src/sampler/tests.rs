use std::fs;

use proptest::prelude::*;
use serde_json::json;
use switchyard_grammar::Grammar;
use tempfile::TempDir;

use super::*;
use crate::step::{Constraint, SequenceChunk};
use crate::verify::tests::micro;
use crate::weights::Checkpoint;

const ID: SequenceId = SequenceId(1);
const PATIENT: Duration = Duration::from_secs(60);
/// The micro model's end of an answer.
const EOS: u32 = 1;
const THINK_END: u32 = 2;

/// A folder with a tokenizer for the micro model: each of the 256 tokens is a byte.
pub(crate) fn byte_tokenizer() -> TempDir {
    let shows = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let name = |byte: u8| match (0..byte).filter(|&byte| !shows(byte)).count() as u32 {
        _ if shows(byte) => char::from(byte),
        before => char::from_u32(0x100 + before).unwrap(),
    };
    let vocab: serde_json::Map<_, _> =
        (0..=255).map(|byte| (name(byte).to_string(), json!(byte))).collect();
    let tokenizer = json!({ "added_tokens": [], "decoder": { "type": "ByteLevel" }, "model": { "vocab": vocab } });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

/// Samplers of the micro model.
pub(crate) fn samplers(dir: &TempDir) -> Samplers {
    let checkpoint = Checkpoint::open(&micro().join("q")).unwrap();
    Samplers::new(checkpoint.config(), Some(dir.path().join("tokenizer.json")))
        .with_mask_budget(PATIENT)
}

fn start(constraint: Option<Constraint>) -> SequenceStart {
    SequenceStart { prompt_len: 3, sampling: SamplingParams::default(), constraint }
}

fn regex(regex: &str) -> Constraint {
    Constraint { grammar: Grammar::regex(regex), after: None, forbidden_before: Vec::new() }
}

/// A chunk of sequence [`ID`] that prefills `ids`.
fn chunk(first_position: u32, ids: &[u32]) -> StepBatch {
    let chunk = SequenceChunk {
        sequence: ID,
        first_position,
        tokens: ChunkTokens::Ids(ids.to_vec()),
        new_blocks: Vec::new(),
        start: None,
        samples: true,
    };
    StepBatch { chunks: vec![chunk], released: Vec::new() }
}

/// Takes in a sampled token.
fn sampled(samplers: &mut Samplers, position: u32, token_id: u32) {
    let sample =
        SampledToken { sequence: ID, position, token_id, logprob: 0.0, top_logprobs: vec![] };
    samplers.commit(&[sample]);
}

fn turn(samplers: &mut Samplers) -> Turn {
    samplers.turns([ID].into_iter()).remove(0)
}

/// The bytes that may be drawn next.
fn allowed(samplers: &mut Samplers) -> Vec<u8> {
    assert_eq!(turn(samplers), Turn::Now);
    let request = samplers.request(ID, 0).unwrap();
    let words = request.adjustment.allowed.unwrap();
    (0..=255).filter(|&byte| words[usize::from(byte) / 32] >> (byte % 32) & 1 == 1).collect()
}

#[test]
fn a_grammar_is_followed_token_by_token() {
    let dir = byte_tokenizer();
    let mut samplers = samplers(&dir);
    samplers.begin(ID, &start(Some(regex("ab?c"))));
    assert_eq!(allowed(&mut samplers), b"a");
    samplers.admit(&chunk(0, &[7, 8, 9]));
    assert_eq!(allowed(&mut samplers), b"a", "the prompt is not part of it");
    sampled(&mut samplers, 3, b'a'.into());
    assert_eq!(allowed(&mut samplers), b"bc");
    sampled(&mut samplers, 4, b'c'.into());
    assert_eq!(allowed(&mut samplers), [EOS as u8]);
    sampled(&mut samplers, 5, EOS);
    assert_eq!(allowed(&mut samplers), [EOS as u8], "one step is always sent ahead");
}

#[test]
fn a_grammar_holds_after_its_token() {
    let dir = byte_tokenizer();
    let mut samplers = samplers(&dir);
    let constraint =
        Constraint { after: Some(THINK_END), forbidden_before: vec![EOS], ..regex("[xy]") };
    samplers.begin(ID, &start(Some(constraint)));
    let all_but_the_end: Vec<u8> = (0..=255).filter(|&byte| u32::from(byte) != EOS).collect();
    for position in 3..6 {
        assert_eq!(allowed(&mut samplers), all_but_the_end);
        sampled(&mut samplers, position, 100);
    }
    sampled(&mut samplers, 6, THINK_END);
    assert_eq!(allowed(&mut samplers), b"xy");
}

#[test]
fn what_cannot_be_followed_fails_its_own_sequence() {
    let dir = byte_tokenizer();
    let mut samplers = samplers(&dir);
    let reason = |samplers: &mut Samplers| match turn(samplers) {
        Turn::Never(reason) => reason,
        other @ (Turn::Now | Turn::Later) => panic!("{other:?}"),
    };
    samplers.begin(ID, &start(Some(regex("("))));
    assert!(reason(&mut samplers).contains("regex"), "{}", reason(&mut samplers));
    samplers.begin(ID, &start(Some(regex("a"))));
    assert_eq!(allowed(&mut samplers), b"a");
    sampled(&mut samplers, 3, b'x'.into());
    assert!(!reason(&mut samplers).is_empty());
    samplers.begin(ID, &start(None));
    assert_eq!(turn(&mut samplers), Turn::Now, "another sequence");
    samplers.clear();
    assert_eq!(reason(&mut samplers), "it was never begun");

    let checkpoint = Checkpoint::open(&micro().join("q")).unwrap();
    let mut without = Samplers::new(checkpoint.config(), None).with_mask_budget(PATIENT);
    without.begin(ID, &start(Some(regex("a"))));
    assert!(reason(&mut without).contains("tokenizer"), "{}", reason(&mut without));
}

#[test]
fn a_mask_that_is_late_puts_the_sample_off() {
    let dir = byte_tokenizer();
    let mut samplers = samplers(&dir).with_mask_budget(Duration::ZERO);
    samplers.begin(ID, &start(Some(regex("a"))));
    // The thread has to read the tokenizer first.
    assert_eq!(turn(&mut samplers), Turn::Later);
    let mut samplers = samplers.with_mask_budget(PATIENT);
    assert_eq!(allowed(&mut samplers), b"a");
}

proptest! {
    /// Penalties follow from the answer's tokens, whether they were sampled one by one or replayed, even twice.
    #[test]
    fn penalties_are_a_function_of_the_answer(
        answer in proptest::collection::vec(0_u32..8, 0..20),
        cut in 0_usize..20,
        (presence, frequency) in (-2.0_f32..2.0, -2.0_f32..2.0),
    ) {
        let dir = byte_tokenizer();
        let mut samplers = samplers(&dir);
        let logit_bias = vec![(2, 5.0), (7, -1.0)];
        let sampling = SamplingParams {
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias: logit_bias.clone(),
            ..SamplingParams::default()
        };
        samplers.begin(ID, &SequenceStart { sampling, ..start(None) });
        let cut = cut.min(answer.len());
        samplers.admit(&chunk(0, &[[3, 3, 3].as_slice(), &answer[..cut]].concat()));
        if let Some(last) = answer[..cut].last() {
            samplers.admit(&chunk(3 + cut as u32 - 1, &[*last]));
        }
        for (position, &token) in (3 + cut as u32..).zip(&answer[cut..]) {
            sampled(&mut samplers, position, token);
        }
        let request = samplers.request(ID, 0).unwrap();
        for token in 0..8 {
            let count = answer.iter().filter(|&&other| other == token).count();
            let asked = logit_bias.iter().find(|(id, _)| *id == token).map_or(0.0, |(_, bias)| *bias);
            let expected = if count > 0 { asked - (presence + frequency * count as f32) } else { asked };
            let bias = request.adjustment.bias.iter().find(|(id, _)| *id == token);
            prop_assert_eq!(bias.map_or(0.0, |(_, bias)| *bias), expected);
        }
        prop_assert!(request.adjustment.bias.is_sorted_by(|a, b| a.0 < b.0));
    }
}
