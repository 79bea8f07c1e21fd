use std::num::NonZeroU32;

use super::*;

fn limits(requests: u32, tokens: u32, concurrent: u32) -> KeyLimits {
    KeyLimits {
        requests_per_minute: NonZeroU32::new(requests),
        tokens_per_minute: NonZeroU32::new(tokens),
        concurrent_requests: NonZeroU32::new(concurrent),
        monthly_tokens: None,
    }
}

fn over(kind: LimitKind, limit: u32, seconds: impl Into<Option<u64>>) -> Result<(), OverLimit> {
    let retry_after = seconds.into().map(Duration::from_secs);
    Err(OverLimit { kind, limit, retry_after })
}

#[test]
fn each_limit_refuses_what_is_too_much() {
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let usage = Limiter::default().usage(KeyId::new(1), now);

    let two_at_once = limits(0, 0, 2);
    usage.enter(&two_at_once, now).unwrap();
    usage.enter(&two_at_once, now).unwrap();
    assert_eq!(usage.enter(&two_at_once, now), over(LimitKind::Concurrent, 2, None));
    usage.leave();
    usage.enter(&two_at_once, now).unwrap();

    let three_a_minute = limits(3, 0, 0);
    (0..3).for_each(|_| usage.enter(&three_a_minute, now).unwrap());
    assert_eq!(usage.enter(&three_a_minute, now), over(LimitKind::Requests, 3, 20));
    usage.enter(&three_a_minute, later(20)).unwrap();

    let tokens = limits(0, 600, 0);
    usage.take_tokens(&tokens, 500, now).unwrap();
    assert_eq!(usage.take_tokens(&tokens, 200, now), over(LimitKind::Tokens, 600, 10));
    // An answer goes on, but the next request waits for it.
    usage.enter(&tokens, now).unwrap();
    usage.charge_tokens(&tokens, 400, now);
    assert_eq!(usage.enter(&tokens, now), over(LimitKind::Tokens, 600, 30));
    usage.enter(&tokens, later(30)).unwrap();
    usage.refund_tokens(600);
    usage.take_tokens(&tokens, 600, later(30)).unwrap();
}

#[test]
fn a_refused_request_uses_nothing() {
    let now = Instant::now();
    let usage = Limiter::default().usage(KeyId::new(1), now);
    let both = limits(5, 0, 1);
    usage.enter(&both, now).unwrap();
    for _ in 0..10 {
        usage.enter(&both, now).unwrap_err();
    }
    assert_eq!(usage.allowances(&both, now).requests.unwrap().remaining, 4);
}

#[test]
fn keys_do_not_share_and_those_at_rest_are_forgotten() {
    let now = Instant::now();
    let limiter = Limiter::default();
    let one = limits(1, 0, 0);
    for id in 0..4096 {
        let usage = limiter.usage(KeyId::new(id), now);
        usage.enter(&one, now).unwrap();
        usage.leave();
    }
    let running = limiter.usage(KeyId::new(0), now);
    let later = now + Duration::from_secs(61);
    limiter.usage(KeyId::new(1), later).enter(&one, later).unwrap();
    // A new key makes room: what is over a minute old says nothing any more, but for two keys.
    limiter.usage(KeyId::new(5000), later);
    assert_eq!(limiter.len(), 3);
    assert!(Arc::ptr_eq(&running, &limiter.usage(KeyId::new(0), later)));
    assert!(limiter.usage(KeyId::new(1), later).enter(&one, later).is_err());
}
