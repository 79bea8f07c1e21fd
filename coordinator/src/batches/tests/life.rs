//! Batches from their beginning to each of their ends.

use super::*;

#[tokio::test]
async fn a_batch_is_answered_line_by_line_and_charged() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let bodies: Vec<_> = (0..10).map(|n| json!({ "n": n })).collect();
        let made = setup.create(&bodies).await;
        assert_eq!((made.status, made.times.expires), (Status::Validating, NOW + 86_400));
        assert_eq!(setup.runner().run_once().await.unwrap(), 1);
        let batch = setup.get(&made.id).await;
        assert_eq!(batch.status, Status::Completed);
        let counts = batch.counts;
        assert_eq!((counts.total, counts.completed, counts.failed), (10, 10, 0));
        assert_eq!((10, batch.usage), times(10, PRICE));
        assert_eq!(charged(fixture).await, times(10, PRICE));
        assert_eq!(batch.error, None);
        let lines = setup.lines(batch.output.as_ref()).await;
        for (n, line) in lines.iter().enumerate() {
            assert_eq!(line["custom_id"], format!("c{n}"), "in the order of the input");
            assert_eq!(line["response"]["status_code"], 200);
            assert_eq!(line["response"]["body"]["echo"]["n"], n);
            assert_eq!(line["error"], Value::Null);
        }
        assert_eq!(lines.len(), 10);
        let files = setup.batches.files();
        let output = files.get(OWNER, batch.output.as_ref().unwrap()).await.unwrap();
        assert_eq!(output.purpose, Purpose::BatchOutput);
        assert_eq!(output.bytes, setup.read(&output.id).await.len() as u64);
    }
}

#[tokio::test]
async fn failures_go_into_a_file_of_their_own() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let bodies = [json!({ "fail": 400 }), json!({}), json!({ "fail": 404 })];
    let made = setup.create(&bodies).await;
    setup.runner().run_once().await.unwrap();
    let batch = setup.get(&made.id).await;
    assert_eq!(
        (batch.status, batch.counts.completed, batch.counts.failed),
        (Status::Completed, 1, 2)
    );
    assert_eq!(custom_ids(&setup.lines(batch.output.as_ref()).await), ["c1"]);
    let errors = setup.lines(batch.error.as_ref()).await;
    assert_eq!(custom_ids(&errors), ["c0", "c2"]);
    assert_eq!(errors[1]["response"]["status_code"], 404);
    assert_eq!(charged(&fixture).await, times(1, PRICE));
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_it_has() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({}), json!({ "hang": true })]).await;
        let runner = setup.runner();
        let run = runner.run_once();
        let cancel = async {
            while setup.get(&made.id).await.counts.completed == 0 {
                tokio::task::yield_now().await;
            }
            let cancelled = setup.batches.cancel(OWNER, &made.id).await.unwrap();
            assert_eq!(cancelled.status, Status::Cancelling);
        };
        let (ran, ()) = tokio::join!(run, cancel);
        ran.unwrap();
        let batch = setup.get(&made.id).await;
        assert_eq!(batch.status, Status::Cancelled);
        assert_eq!(custom_ids(&setup.lines(batch.output.as_ref()).await), ["c0"]);
        assert_eq!(batch.error, None);
        assert_eq!(charged(fixture).await, times(1, PRICE));
        assert_eq!(setup.batches.cancel(OWNER, &made.id).await.unwrap(), batch, "again");
    }
}

#[tokio::test]
async fn a_batch_that_is_not_run_yet_is_cancelled_too() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::new(&fixture);
    let made = setup.create(&[json!({})]).await;
    setup.batches.cancel(OWNER, &made.id).await.unwrap();
    setup.runner().run_once().await.unwrap();
    let batch = setup.get(&made.id).await;
    assert_eq!((batch.status, batch.output, batch.error), (Status::Cancelled, None, None));
    assert_eq!(setup.fake.num_calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn requests_without_an_answer_in_time_expire() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({}), json!({ "hang": true })]).await;
        let runner = setup.runner();
        let run = runner.run_once();
        let expire = async {
            while setup.get(&made.id).await.counts.completed == 0 {
                tokio::task::yield_now().await;
            }
            fixture.set_time(NOW + 86_400);
        };
        let (ran, ()) = tokio::join!(run, expire);
        ran.unwrap();
        let batch = setup.get(&made.id).await;
        assert_eq!((batch.status, batch.times.expired), (Status::Expired, Some(NOW + 86_400)));
        assert_eq!(custom_ids(&setup.lines(batch.output.as_ref()).await), ["c0"]);
        let errors = setup.lines(batch.error.as_ref()).await;
        assert_eq!(custom_ids(&errors), ["c1"]);
        assert_eq!(errors[0]["error"]["code"], "batch_expired");
        assert_eq!(errors[0]["response"], Value::Null);
    }
}

#[tokio::test]
async fn a_batch_is_its_owners_alone() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({})]).await;
        let strange = setup.batches.get(STRANGER, &made.id).await;
        assert!(matches!(strange, Err(Error::NotFound { .. })), "{strange:?}");
        let strange = setup.batches.cancel(STRANGER, &made.id).await;
        assert!(matches!(strange, Err(Error::NotFound { .. })), "{strange:?}");
        let strange = setup.batches.create(STRANGER, new_batch(made.input.clone())).await;
        assert!(matches!(strange, Err(Error::File(files::Error::NotFound { .. }))), "{strange:?}");
        let all = ListBatches { limit: 10, after: None };
        assert!(setup.batches.list(STRANGER, &all).await.unwrap().items.is_empty());
        assert_eq!(setup.batches.list(OWNER, &all).await.unwrap().items, [made]);
    }
}

#[tokio::test]
async fn an_input_stays_until_its_batch_is_over() {
    for fixture in &fixtures().await {
        let setup = Setup::new(fixture);
        let made = setup.create(&[json!({})]).await;
        let files = setup.batches.files();
        let early = files.delete(OWNER, &made.input).await;
        assert!(matches!(early, Err(files::Error::InUse { .. })), "{early:?}");
        setup.runner().run_once().await.unwrap();
        files.delete(OWNER, &made.input).await.unwrap();
        let kept = ListFiles { purpose: None, limit: 10, newest_first: true, after: None };
        let kept = files.list(OWNER, &kept).await.unwrap().items;
        assert_eq!(kept.len(), 1, "the output: {kept:?}");
        // What a batch made is no input for another.
        let again = setup.batches.create(OWNER, new_batch(kept[0].id.clone())).await;
        assert!(matches!(again, Err(Error::NotInput { .. })), "{again:?}");
    }
}

#[tokio::test]
async fn a_key_has_so_many_batches_at_once() {
    let fixture = Fixture::sqlite().await;
    let setup = Setup::with(&fixture, BatchLimits { per_key_max: 1, ..BatchLimits::default() });
    let made = setup.create(&[json!({})]).await;
    let second = setup.batches.create(OWNER, new_batch(made.input.clone())).await;
    assert!(matches!(second, Err(Error::TooMany { max: 1 })), "{second:?}");
    setup.runner().run_once().await.unwrap();
    setup.batches.create(OWNER, new_batch(made.input)).await.unwrap();
}

#[tokio::test]
async fn requests_in_flight_are_bounded_over_all_batches() {
    let fixture = Fixture::sqlite().await;
    let limits = BatchLimits { concurrency: 3, running_max: 2, ..BatchLimits::default() };
    let setup = Setup::with(&fixture, limits);
    let hang = vec![json!({ "hang": true }); 5];
    setup.create(&hang).await;
    setup.create(&hang).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let runner = tokio::spawn(setup.runner().run(stop.clone()));
    // As many as there may be are there soon, and stay the only ones.
    while setup.fake.num_calls.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.fake.num_calls.load(Ordering::Relaxed), 3);
    stop.cancel();
    runner.await.unwrap();
}
