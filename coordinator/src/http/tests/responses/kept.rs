//! Responses that are fetched, continued, listed, cancelled and deleted.

use super::*;
use crate::auth::Terms;
use crate::engine::request::GenerateEvent;
use crate::testing::USER;

/// Path of a response.
fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

impl Fixture {
    /// A whole response of this text.
    async fn whole(&self, fields: &Value, text: &str) -> Value {
        self.engine.answer(&ids(text));
        let answer = self.respond(fields).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    /// A response once its status is another than `in_progress`.
    async fn ended(&self, path: &str) -> Value {
        loop {
            let response = self.ask("GET", path).await.json();
            if response["status"] != "in_progress" {
                return response;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_response_is_kept_unless_it_is_not_wanted() {
    let fixture = Fixture::new().await;
    let kept = fixture.whole(&json!({}), "yes").await;
    assert_eq!(fixture.ask("GET", &path(&kept)).await.json(), kept);
    let unwanted = fixture.whole(&json!({ "store": false }), "yes").await;
    assert_eq!(unwanted["store"], false);
    assert_eq!(fixture.ask("GET", &path(&unwanted)).await.error().0, 404);
    fixture.engine.answer(&ids("yes"));
    let events = events(&fixture.respond(&json!({ "stream": true })).await.text());
    let streamed = &events.last().unwrap().1["response"];
    assert_eq!(fixture.ask("GET", &path(streamed)).await.json(), *streamed);

    let deleted = fixture.ask("DELETE", &path(&kept)).await.json();
    assert_eq!(deleted, json!({ "id": kept["id"], "object": "response", "deleted": true }));
    assert_eq!(fixture.ask("GET", &path(&kept)).await.error().0, 404);
    let streams = fixture.ask("GET", &format!("{}?stream=true", path(streamed))).await;
    assert_eq!(streams.error().2.as_deref(), Some("stream"));
}

#[tokio::test]
async fn another_key_does_not_see_it() {
    let fixture = Fixture::new().await;
    let (_, other) = fixture.context.accounts.keys().create(&Terms::default()).await.unwrap();
    let kept = fixture.whole(&json!({}), "yes").await;
    for (method, path) in [
        ("GET", path(&kept)),
        ("DELETE", path(&kept)),
        ("GET", path(&kept) + "/input_items"),
        ("POST", path(&kept) + "/cancel"),
    ] {
        let mut request = request(method, &path, None);
        let bearer = format!("Bearer {}", other.expose()).parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        assert_eq!(fixture.send(request).await.error().0, 404, "{method} {path}");
    }
    assert_eq!(fixture.ask("GET", &path(&kept)).await.json(), kept);
}

#[tokio::test]
async fn a_response_continues_another_as_if_all_had_been_sent() {
    let fixture = roomy().await;
    let tools = rich_request();
    fixture.engine.answer(&rich_output());
    let first = fixture.respond(&tools).await.json();
    let call_id = &first["output"][2]["call_id"];
    let result = json!({ "type": "function_call_output", "call_id": call_id, "output": "7" });
    fixture.engine.take_requests();

    let mut short = tools.clone();
    short["previous_response_id"] = first["id"].clone();
    short["input"] = json!([result]);
    let continued = fixture.response_prompt(&short).await.prompt;
    let mut long = tools.clone();
    let mut items = vec![json!({ "role": "user", "content": "hi" })];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    items.push(result.clone());
    long["input"] = items.into();
    assert_eq!(continued, fixture.response_prompt(&long).await.prompt);
    // Items that the server made may also be named.
    let mut named = tools.clone();
    let reference = |item: &Value| json!({ "id": item["id"] });
    let mut items = vec![json!({ "role": "user", "content": "hi" })];
    items.extend(first["output"].as_array().unwrap().iter().map(reference));
    items.push(result);
    named["input"] = items.into();
    assert_eq!(continued, fixture.response_prompt(&named).await.prompt);

    // Without the result the call stays open.
    short["input"] = json!("go on");
    assert_eq!(fixture.respond(&short).await.error().0, 400);
}

#[tokio::test]
async fn a_chain_keeps_the_whole_conversation_but_not_the_instructions() {
    let fixture = Fixture::new().await;
    let first = fixture.whole(&json!({ "input": "A", "instructions": "I" }), "B").await;
    let next = json!({ "input": "C", "previous_response_id": first["id"] });
    let second = fixture.whole(&next, "D").await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({ "input": "E", "previous_response_id": second["id"] });
    fixture.engine.take_requests();
    let prompt = fixture.response_prompt(&third).await.prompt;
    let letter = |letter: &str| prompt.iter().position(|id| *id == ids(letter)[0]);
    let places: Vec<_> = ["A", "B", "C", "D", "E"].map(letter).into_iter().flatten().collect();
    assert_eq!(places.len(), 5);
    assert!(places.is_sorted());
    assert_eq!(letter("I"), None);
    assert_eq!(prompt.iter().filter(|id| **id == USER).count(), 3);

    // Deleting what came before takes nothing from what came after.
    fixture.ask("DELETE", &path(&first)).await;
    assert_eq!(fixture.response_prompt(&third).await.prompt, prompt);
    let list = fixture.ask("GET", &(path(&second) + "/input_items?order=asc&limit=2")).await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["has_more"], true);
    assert_eq!(list["data"][0]["content"], json!([{ "type": "input_text", "text": "A" }]));
    assert_eq!(list["data"][1]["id"], first["output"][0]["id"]);
    assert_eq!(
        (&list["first_id"], &list["last_id"]),
        (&list["data"][0]["id"], &list["data"][1]["id"])
    );
    let after = format!(
        "{}/input_items?order=asc&after={}",
        path(&second),
        list["last_id"].as_str().unwrap()
    );
    let rest = fixture.ask("GET", &after).await.json();
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
    assert_eq!(rest["data"][0]["content"][0]["text"], "C");
    let newest = fixture.ask("GET", &(path(&second) + "/input_items")).await.json();
    assert_eq!(newest["data"][0], rest["data"][0]);
    for query in ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_0"] {
        let answer = fixture.ask("GET", &format!("{}/input_items?{query}", path(&second))).await;
        assert_eq!(answer.error().0, 400, "{query}");
    }
}

#[tokio::test]
async fn a_background_response_is_made_without_its_client() {
    let fixture = Fixture::new().await;
    let engine = fixture.engine.manual();
    let begun = fixture.respond(&json!({ "background": true })).await.json();
    assert_eq!((&begun["status"], &begun["background"]), (&json!("in_progress"), &json!(true)));
    assert_eq!(begun["output"], json!([]));
    assert_eq!(fixture.ask("GET", &path(&begun)).await.json(), begun);
    let next = json!({ "input": "C", "previous_response_id": begun["id"] });
    assert_eq!(fixture.respond(&next).await.error().1, "previous_response_not_finished");
    engine.send(testing::token(ids("a")[0])).await.unwrap();
    engine.send(GenerateEvent::Finished(FinishReason::Stop)).await.unwrap();
    let ended = fixture.ended(&path(&begun)).await;
    assert_eq!((&ended["status"], &ended["background"]), (&json!("completed"), &json!(true)));
    assert_eq!(ended["output"][0]["content"][0]["text"], "a");
    // Cancelling what is over changes nothing.
    assert_eq!(fixture.ask("POST", &(path(&begun) + "/cancel")).await.json(), ended);
    fixture.response_prompt(&next).await;
}

#[tokio::test]
async fn a_background_response_is_cancelled_or_deleted() {
    let fixture = Fixture::new().await;
    for method in ["POST", "DELETE"] {
        let engine = fixture.engine.manual();
        let begun = fixture.respond(&json!({ "background": true })).await.json();
        engine.send(testing::token(ids("a")[0])).await.unwrap();
        let path = path(&begun);
        if method == "POST" {
            let cancelled = fixture.ask(method, &(path.clone() + "/cancel")).await.json();
            assert_eq!(cancelled["status"], "cancelled");
            assert_eq!(fixture.ask("GET", &path).await.json(), cancelled);
        } else {
            assert_eq!(fixture.ask(method, &path).await.json()["deleted"], true);
            assert_eq!(fixture.ask("GET", &path).await.error().0, 404);
        }
        engine.closed().await;
    }
    let foreground = fixture.whole(&json!({}), "yes").await;
    let answer = fixture.ask("POST", &(path(&foreground) + "/cancel")).await;
    assert_eq!(answer.error(), (400, "response_not_cancellable".into(), None));
    fixture.context.responses.drained().await;
}

#[tokio::test]
async fn a_background_response_that_fails_says_why() {
    let fixture = Fixture::new().await;
    let failure = GenerateError::GroupLost("rank 5 stopped".into());
    fixture.engine.script(Script::Events(vec![testing::failed(failure)]));
    let begun = fixture.respond(&json!({ "background": true })).await.json();
    let ended = fixture.ended(&path(&begun)).await;
    assert_eq!(ended["status"], "failed");
    assert!(ended["error"]["message"].as_str().unwrap().contains("rank 5 stopped"));
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_and_keeps_nothing() {
    let fixture = Fixture::new().await;
    let engine = fixture.engine.manual();
    let response =
        fixture.begin(response_request("/v1/responses", &json!({ "stream": true }))).await;
    let mut body = response.into_body().into_data_stream();
    let first = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    let first = events(std::str::from_utf8(&first).unwrap()).remove(0).1;
    drop(body);
    engine.closed().await;
    assert_eq!(fixture.ask("GET", &path(&first["response"])).await.error().0, 404);
}
