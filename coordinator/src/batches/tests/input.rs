//! What is wrong with an input, and in which line.

use super::*;

/// Runs a batch of this input; code, field and line of each mistake.
async fn mistakes(setup: &Setup, text: &str) -> Vec<(String, Option<String>, Option<u64>)> {
    let made = setup.create_of(text).await;
    setup.runner().run_once().await.unwrap();
    let batch = setup.get(&made.id).await;
    if batch.errors.is_empty() {
        assert_eq!(batch.status, Status::Completed, "{text}");
    } else {
        assert_eq!((batch.status, batch.counts.total), (Status::Failed, 0), "{text}");
        assert!(batch.times.failed.is_some());
    }
    batch.errors.into_iter().map(|error| (error.code, error.param, error.line)).collect()
}

#[tokio::test]
async fn mistakes_are_listed_with_their_lines() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let good = request("good", &json!({})).to_string();
    let with = |field: &str, value: Value| {
        let mut request = request("bad", &json!({}));
        request[field] = value;
        request.to_string()
    };
    let without = |field: &str| {
        let mut request = request("bad", &json!({}));
        request.as_object_mut().unwrap().shift_remove(field);
        request.to_string()
    };
    for (line, code, param) in [
        ("{".to_owned(), "invalid_json_line", None),
        ("[]".to_owned(), "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", Some("custom_id")),
        (with("custom_id", 1.into()), "invalid_type", Some("custom_id")),
        (with("custom_id", "".into()), "invalid_value", Some("custom_id")),
        (with("custom_id", "good".into()), "duplicate_custom_id", Some("custom_id")),
        (with("method", "GET".into()), "invalid_method", Some("method")),
        (with("url", "/v1/completions".into()), "mismatched_url", Some("url")),
        (with("body", "text".into()), "invalid_type", Some("body")),
        (without("body"), "missing_required_parameter", Some("body")),
        (with("extra", 1.into()), "unknown_parameter", None),
        (
            request("bad", &json!({ "stream": true })).to_string(),
            "unsupported_parameter",
            Some("body.stream"),
        ),
    ] {
        let found = mistakes(&setup, &format!("{good}\n\n{line}\n")).await;
        let expected = (code.to_owned(), param.map(str::to_owned), Some(3));
        assert_eq!(found, [expected], "{line}");
    }
    assert_eq!(setup.fake.num_calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn lines_may_end_as_they_like() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let [a, b] = ["a", "b"].map(|id| request(id, &json!({ "text": "zwölf" })).to_string());
    for text in
        [format!("{a}\n{b}\n"), format!("{a}\r\n{b}"), format!("\u{feff}{a}\n\n  {b}  \n\n")]
    {
        let made = setup.create_of(&text).await;
        setup.runner().run_once().await.unwrap();
        let batch = setup.get(&made.id).await;
        let lines = setup.lines(batch.output.as_ref()).await;
        assert_eq!(custom_ids(&lines), ["a", "b"], "{text:?}");
        assert_eq!(lines[1]["response"]["body"]["echo"]["text"], "zwölf");
    }
}

#[tokio::test]
async fn a_file_has_some_requests_and_not_too_many() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::with(&fixture, BatchLimits { lines_max: 2, ..BatchLimits::default() });
    assert_eq!(mistakes(&setup, " \n").await, [("empty_file".to_owned(), None, None)]);
    let lines = |count: usize| -> String {
        (0..count).map(|n| request(&n.to_string(), &json!({})).to_string() + "\n").collect()
    };
    assert_eq!(mistakes(&setup, &lines(2)).await, []);
    let too_many = ("too_many_requests".to_owned(), None, Some(3));
    assert_eq!(mistakes(&setup, &lines(5)).await, [too_many]);
    let many = "{\n".repeat(1000);
    assert_eq!(mistakes(&setup, &many).await.len(), 100, "no list without an end");
}
