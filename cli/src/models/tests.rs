use super::{describe, parse, parse_all};
use crate::config::Problems;

#[test]
fn the_id_is_the_folder_unless_given() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("demo-flash");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    assert_eq!(parse(path).unwrap().id, "demo-flash");
    assert_eq!(parse(&format!("{path}/")).unwrap().id, "demo-flash");
    let named = parse(&format!("org/other={path}")).unwrap();
    assert_eq!((named.id.as_str(), named.dir), ("org/other", dir.canonicalize().unwrap()));
}

#[test]
fn mistakes_name_the_argument() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.json");
    std::fs::write(&file, "{}").unwrap();
    let check = |typed: &str, expect: &str| {
        let message = parse(typed).unwrap_err().to_string();
        assert!(message.contains(typed) && message.contains(expect), "{message}");
    };
    check("a=/nowhere/at/all", "no folder");
    check(file.to_str().unwrap(), "not a folder");
    check(&format!("two words={}", root.path().display()), "cannot be a model id");
    check(&format!("={}", root.path().display()), "cannot be a model id");
}

#[test]
fn two_models_need_two_ids() {
    let root = tempfile::tempdir().unwrap();
    let typed = format!("a={}", root.path().display());
    let mut problems = Problems::default();
    parse_all(&[typed.clone(), typed], &mut problems);
    assert!(problems.finish().unwrap_err().to_string().contains("already names"));
}

#[test]
fn titles_go_to_the_model_they_name() {
    let root = tempfile::tempdir().unwrap();
    let mut problems = Problems::default();
    let typed = ["a", "b"].map(|id| format!("{id}={}", root.path().display()));
    let mut models = parse_all(&typed, &mut problems);
    let titles = ["b=Second = last".to_owned()];
    describe(&mut models, &titles, &["a= What it is. ".to_owned()], &mut problems);
    assert_eq!(
        (models[0].title.as_deref(), models[1].title.as_deref()),
        (None, Some("Second = last"))
    );
    assert_eq!(models[0].description.as_deref(), Some("What it is."));
    problems.finish().unwrap();

    let mut problems = Problems::default();
    let wrong = ["c=Third".to_owned(), "a=".to_owned(), "a".to_owned()];
    describe(&mut models, &wrong, &[], &mut problems);
    let message = problems.finish().unwrap_err().to_string();
    assert!(message.contains("3 mistakes") && message.contains("there is a, b"), "{message}");
}
