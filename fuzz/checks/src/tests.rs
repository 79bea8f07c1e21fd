use std::path::Path;

use crate::output::Outputs;
use crate::request::Requests;
use crate::schema::Schemas;

/// The inputs that a target's corpus consists of.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    let inputs: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(inputs.len() > 20, "{target}'s corpus has only {} inputs", inputs.len());
    inputs
}

#[test]
fn requests_of_the_corpus_are_refused_or_kept_to() {
    let requests = Requests::new();
    corpus("request").iter().for_each(|input| requests.check(input));
}

#[test]
fn schemas_of_the_corpus_contradict_nothing() {
    let schemas = Schemas::new();
    corpus("schema").iter().for_each(|input| schemas.check(input));
}

#[test]
fn answers_of_the_corpus_are_the_same_in_any_tokens() {
    let outputs = Outputs::new();
    corpus("output").iter().for_each(|input| outputs.check(input));
}
