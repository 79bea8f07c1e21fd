use super::*;

fn at(began: Instant, millis: u64) -> Instant {
    began + Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn rates_are_those_of_the_last_seconds() {
    let began = Instant::now();
    let mut activity = Activity::default();
    assert_eq!(activity.rates(began), Rates::default());
    activity.formed(2);
    // Ten seconds with ten tokens each.
    for tick in 0..100 {
        activity.generated(at(began, tick * 100));
    }
    let rates = activity.rates(at(began, 10_000));
    assert!((rates.generated_tokens - 10.0).abs() < 0.01, "{rates:?}");
    // Nothing since: half of the window, then none of it.
    let rates = activity.rates(at(began, 12_500));
    assert!((3.0..7.0).contains(&rates.generated_tokens), "{rates:?}");
    let rates = activity.rates(at(began, 16_000));
    assert_eq!((rates.generated_tokens, rates.step_seconds), (0.0, None));
}

#[tokio::test(start_paused = true)]
async fn a_first_token_is_no_flood_and_a_pause_leaves_nothing_behind() {
    let began = Instant::now();
    let mut activity = Activity::default();
    activity.generated(began);
    assert_eq!(activity.rates(at(began, 1)).generated_tokens, 1.0);
    // A multiple of the ring's length later the slots are the same ones.
    activity.generated(at(began, 60_000));
    let rates = activity.rates(at(began, 60_000));
    assert!(rates.generated_tokens < 0.25, "{rates:?}");
}

#[tokio::test(start_paused = true)]
async fn steps_are_means_by_rank_and_begin_anew_with_a_group() {
    let began = Instant::now();
    let mut activity = Activity::default();
    activity.formed(2);
    let step = |millis, num_tokens| RankStep { time: Duration::from_millis(millis), num_tokens };
    activity.committed(began, Duration::from_millis(30), &[step(10, 6), step(20, 0)]);
    activity.committed(at(began, 900), Duration::from_millis(10), &[step(4, 4), step(8, 2)]);
    let rates = activity.rates(at(began, 1000));
    assert!((rates.step_seconds.unwrap() - 0.02).abs() < 1e-9);
    assert!((rates.ranks[0].step_seconds.unwrap() - 0.007).abs() < 1e-9);
    assert_eq!((rates.ranks[0].tokens, rates.ranks[1].tokens), (10.0, 2.0));
    activity.lost();
    assert_eq!(activity.rates(at(began, 1000)).ranks, []);
    activity.formed(1);
    assert_eq!(activity.rates(at(began, 1000)).ranks, [RankRates::default()]);
}
