//! Several answers to one request.

use tokio::sync::mpsc::Sender;

use super::chat::chunks;
use super::*;
use crate::engine::request::{FinishReason, GenerateError, GenerateEvent, SubmitError};
use crate::options::Limits;
use crate::testing::{Script, ids};

const TEXTS: [&str; 3] = ["a", "bbb", "cc"];

/// Sends an event and waits until it is taken out of the channel.
async fn read(engine: &Sender<GenerateEvent>, event: GenerateEvent) {
    engine.send(event).await.unwrap();
    while engine.capacity() < engine.max_capacity() {
        tokio::task::yield_now().await;
    }
}

fn script(fixture: &Fixture) {
    for text in TEXTS {
        fixture.engine.answer(&ids(text));
    }
}

#[tokio::test]
async fn choices_come_by_index_whole_and_streamed() {
    let fixture = Fixture::new().await;
    script(&fixture);
    let whole = fixture.chat(&json!({ "n": 3, "seed": 7 })).await.json();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], TEXTS[index]);
        assert_eq!(choice["finish_reason"], "stop");
    }
    let usage = &whole["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(6), &json!(6)));

    for include_usage in [false, true] {
        script(&fixture);
        let mut fields = json!({ "n": 3, "seed": 7, "stream": true });
        if include_usage {
            fields["stream_options"] = json!({ "include_usage": true });
        }
        let chunks = chunks(&fixture.chat(&fields).await);
        for (index, text) in TEXTS.into_iter().enumerate() {
            let of_choice = || {
                chunks
                    .iter()
                    .filter_map(|chunk| chunk["choices"].get(0))
                    .filter(|choice| choice["index"] == index)
            };
            let content = of_choice().filter_map(|choice| choice["delta"]["content"].as_str());
            assert_eq!(content.collect::<String>(), text);
            let (first, last) = (of_choice().next().unwrap(), of_choice().next_back().unwrap());
            assert_eq!(first["delta"]["role"], "assistant");
            assert_eq!(last["finish_reason"], "stop");
        }
        let (last, before) = chunks.split_last().unwrap();
        assert_eq!(last["usage"], *usage, "the last chunk has the sum");
        let null = include_usage.then_some(&Value::Null);
        assert!(before.iter().all(|chunk| chunk.get("usage") == null), "{chunks:?}");
        assert_eq!(last["choices"] == json!([]), include_usage);
        let ids = chunks.iter().map(|chunk| chunk["id"].as_str().unwrap());
        assert_eq!(ids.collect::<std::collections::BTreeSet<_>>().len(), 1);
    }
}

#[tokio::test]
async fn a_choice_is_the_same_among_any_number_of_others() {
    let fixture = Fixture::new().await;
    let mut requests = Vec::new();
    for n in [1, 2, 16] {
        for _ in 0..n {
            fixture.engine.answer(&[]);
        }
        assert_eq!(fixture.chat(&json!({ "n": n, "seed": 7 })).await.status, StatusCode::OK);
        requests.push(fixture.engine.take_requests());
    }
    let texts = |index: usize| -> Vec<_> {
        requests[index].iter().map(|request| format!("{request:?}")).collect()
    };
    let most = texts(2);
    assert_eq!(most.len(), 16);
    assert_eq!((&texts(0)[..], &texts(1)[..]), (&most[..1], &most[..2]));
    assert_ne!(most[0], most[1]);
}

#[tokio::test]
async fn one_permit_is_held_until_all_choices_end() {
    let limits = Limits { in_flight_requests_max: 1, ..Limits::default() };
    let fixture = Fixture::with_limits(limits).await;
    let first = fixture.engine.manual();
    let second = fixture.engine.manual();
    let fields = json!({ "n": 2 });
    let mut answer = Box::pin(fixture.chat(&fields));
    let finished = GenerateEvent::Finished(FinishReason::Stop);
    tokio::select! {
        _ = &mut answer => panic!("nothing is complete"),
        () = read(&first, finished.clone()) => {}
    }
    // The first choice is complete, the second is not.
    assert_eq!(fixture.chat(&json!({})).await.status, StatusCode::TOO_MANY_REQUESTS);
    second.send(finished).await.unwrap();
    assert_eq!(answer.await.status, StatusCode::OK);
    fixture.engine.answer(&[]);
    assert_eq!(fixture.chat(&json!({})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_choice_that_fails_or_is_refused_ends_all() {
    let fixture = Fixture::new().await;
    for stream in [false, true] {
        let running = fixture.engine.manual();
        running.send(testing::token(ids("a")[0])).await.unwrap();
        fixture.engine.script(Script::Events(vec![testing::failed(GenerateError::ShuttingDown)]));
        let answer = fixture.chat(&json!({ "n": 2, "stream": stream })).await;
        assert!(answer.text().contains("shutting_down"), "{}", answer.text());
        assert!(!answer.text().contains("[DONE]"));
        assert!(running.is_closed(), "stream: {stream}");
    }
    let running = fixture.engine.manual();
    let retry_after = Duration::from_secs(3);
    fixture.engine.script(Script::Refuse(SubmitError::QueueFull { waiting: 9, retry_after }));
    let answer = fixture.chat(&json!({ "n": 2 })).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (429, "3"));
    assert!(running.is_closed());
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_every_choice() {
    let fixture = Fixture::new().await;
    let engines = [fixture.engine.manual(), fixture.engine.manual()];
    let fields = json!({ "n": 2 });
    let mut answer = Box::pin(fixture.chat(&fields));
    let token_sent = async {
        for engine in &engines {
            read(engine, testing::token(ids("a")[0])).await;
        }
    };
    tokio::select! {
        _ = &mut answer => panic!("the answer is not complete"),
        () = token_sent => {}
    }
    drop(answer);
    assert!(engines.iter().all(Sender::is_closed));
}
