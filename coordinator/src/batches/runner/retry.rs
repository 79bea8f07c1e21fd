//! How long a request is tried.

use std::time::Duration;

use crate::batches::Error;
use crate::batches::perform::{Answered, Performed};

/// How often a request is tried whose failure may not happen again.
const ATTEMPTS_MAX: u32 = 3;
/// Pause before the second try; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Tries until there is an answer, or the same failure too often. What is only impossible for now is tried for ever.
pub(super) async fn until_answered<F: Future<Output = Result<Performed, Error>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<Answered, Error> {
    let mut pause = PAUSE_MIN;
    let mut num_failures = 0;
    loop {
        let wait = match attempt().await? {
            Performed::Answered(answered) => return Ok(answered),
            Performed::Failed(answered) => {
                num_failures += 1;
                if num_failures == ATTEMPTS_MAX {
                    return Ok(answered);
                }
                pause
            }
            Performed::Later(wait) => wait.max(pause),
        };
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::time::Instant;

    use super::*;

    fn answered(status: u16) -> Answered {
        Answered { status, body: Value::Null, usage: Vec::new() }
    }

    /// Status of the answer, tries, and seconds until then.
    async fn check(script: &[Performed]) -> (u16, usize, f64) {
        let (began, mut num_tries) = (Instant::now(), 0);
        let answer = until_answered(|| {
            num_tries += 1;
            std::future::ready(Ok(script[num_tries - 1].clone()))
        });
        let status = answer.await.unwrap().status;
        (status, num_tries, began.elapsed().as_secs_f64())
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_three_times_and_absence_for_ever() {
        let (good, bad) = (Performed::Answered(answered(200)), Performed::Failed(answered(503)));
        let later = |seconds| Performed::Later(Duration::from_secs(seconds));
        assert_eq!(check(std::slice::from_ref(&good)).await, (200, 1, 0.0));
        assert_eq!(check(&[bad.clone(), bad.clone(), bad.clone()]).await, (503, 3, 1.5));
        let waits = [later(0), later(5), bad, later(0), good.clone()];
        assert_eq!(check(&waits).await, (200, 5, 0.5 + 5.0 + 2.0 + 4.0));
        let mut long = vec![later(0); 12];
        long.push(good);
        let (status, num_tries, seconds) = check(&long).await;
        assert_eq!((status, num_tries), (200, 13));
        assert!(seconds < 12.0 * 30.0, "pauses have an end: {seconds} s");
    }
}
