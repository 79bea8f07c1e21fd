use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn limit(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap()
}

/// Pauses and amounts.
fn uses() -> impl Strategy<Value = Vec<(Duration, u64)>> {
    let pause = prop_oneof![Just(0), 0..5_000_u64, 0..90_000_u64].prop_map(Duration::from_millis);
    proptest::collection::vec((pause, 1..200_u64), 1..60)
}

proptest! {
    #[test]
    fn in_no_window_is_more_taken_than_the_limit_allows(max in 1..300_u32, uses in uses()) {
        let start = Instant::now();
        let (mut now, mut bucket) = (start, Bucket::new(start));
        let mut taken: Vec<(Instant, u64)> = Vec::new();
        for (pause, amount) in uses {
            now += pause;
            let amount = amount.min(max.into());
            if bucket.take(limit(max), amount, now).is_ok() {
                taken.push((now, amount));
            }
        }
        for (first, (since, _)) in taken.iter().enumerate() {
            let mut sum = 0;
            for (until, amount) in &taken[first..] {
                sum += u128::from(*amount);
                // One full bucket, and what leaks meanwhile.
                let allowed = u128::from(max) * (MINUTE + (*until - *since)).as_nanos();
                prop_assert!(sum * PARTS <= allowed);
            }
        }
    }

    #[test]
    fn the_time_to_wait_is_enough_and_not_too_much(max in 1..300_u32, uses in uses()) {
        let start = Instant::now();
        let (mut now, mut bucket) = (start, Bucket::new(start));
        for (pause, amount) in uses {
            now += pause;
            if let Err(wait) = bucket.take(limit(max), amount, now) {
                prop_assert!(wait > Duration::ZERO);
                let early = wait - Duration::from_nanos(1);
                prop_assert!(bucket.clone().take(limit(max), amount, now + early).is_err());
                prop_assert!(bucket.clone().take(limit(max), amount, now + wait).is_ok());
            }
        }
    }

    #[test]
    fn what_remains_can_be_taken_at_once_and_no_more(max in 1..300_u32, uses in uses()) {
        let start = Instant::now();
        let (mut now, mut bucket) = (start, Bucket::new(start));
        for (pause, amount) in uses {
            now += pause;
            bucket.charge(limit(max), amount, now);
            let left = bucket.allowance(limit(max), now);
            prop_assert!(bucket.clone().take(limit(max), left.remaining, now).is_ok() || left.remaining == 0);
            prop_assert!(bucket.clone().take(limit(max), left.remaining + 1, now).is_err());
            let full = bucket.clone().allowance(limit(max), now + left.reset);
            prop_assert_eq!(full.remaining, u64::from(max));
        }
    }
}

#[test]
fn an_overfull_bucket_is_waited_for() {
    let now = Instant::now();
    let mut bucket = Bucket::new(now);
    // More than a minute's worth fits into an empty bucket only, and delays what comes next.
    assert_eq!(bucket.take(limit(60), 180, now), Ok(()));
    assert_eq!(bucket.take(limit(60), 1, now), Err(Duration::from_secs(121)));
    bucket.refund(180);
    assert_eq!(bucket.take(limit(60), 1, now), Ok(()));
    assert_eq!(bucket.take(limit(60), 180, now), Err(Duration::from_secs(1)));
}

#[test]
fn a_new_limit_counts_at_once() {
    let now = Instant::now();
    let mut bucket = Bucket::new(now);
    bucket.charge(limit(10), 10, now);
    assert!(bucket.take(limit(10), 1, now).is_err());
    assert!(bucket.take(limit(20), 1, now).is_ok());
}
