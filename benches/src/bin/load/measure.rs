//! The measurements that a client can make.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;

use super::client::{Client, Timed};

/// Requests of which the median is taken.
const REPEATS: usize = 11;
const QUESTION: &str = "What is the capital of France?";

/// Answers that nobody times: connections, pages and branch predictors become warm.
pub(crate) async fn warm_up(client: &Client) -> anyhow::Result<()> {
    for _ in 0..3 {
        client.stream(QUESTION, 8).await?;
    }
    Ok(())
}

/// Milliseconds from a short question to the first token of its answer, the median.
pub(crate) async fn first_token_ms(client: &Client) -> anyhow::Result<f64> {
    let mut waits = Vec::new();
    for _ in 0..REPEATS {
        let timed = client.stream(QUESTION, 2).await?;
        waits.push(timed.first - timed.sent);
    }
    waits.sort();
    let median = waits.get(REPEATS / 2).context("nothing was measured")?;
    Ok(median.as_secs_f64() * 1000.0)
}

/// Tokens per second, over all streams, from the first token of any to the last of all.
pub(crate) async fn decode_tokens_per_second(
    client: &Client,
    streams: usize,
    tokens: u32,
) -> anyhow::Result<f64> {
    // Prompts differ, as those of different people do.
    let questions: Vec<_> = (0..streams).map(|n| format!("What is {n} plus {}?", 2 * n)).collect();
    let answers = questions.iter().map(|question| client.stream(question, tokens));
    let answers = try_join_all(answers).await?;
    let first = answers.iter().map(|timed| timed.first).min();
    let last = answers.iter().map(|timed| timed.last).max();
    let (first, last) = first.zip(last).context("no stream")?;
    // The first token of each belongs to prefill.
    let decoded: u32 = answers.iter().map(|timed| timed.completion_tokens - 1).sum();
    Ok(per_second(decoded, last - first))
}

/// Prompt tokens per second until the first token of the answer to a long prompt, the best of three.
pub(crate) async fn prefill_tokens_per_second(
    client: &Client,
    tokens: usize,
) -> anyhow::Result<f64> {
    let per_word = tokens_per_word(client).await?;
    let mut best = 0.0_f64;
    for round in 0..3 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count of words, small and positive"
        )]
        let words = (tokens as f64 / per_word) as u32;
        let timed = client.stream(&prompt(round, words), 1).await?;
        best = best.max(per_second(timed.prompt_tokens, timed.first - timed.sent));
    }
    Ok(best)
}

async fn tokens_per_word(client: &Client) -> anyhow::Result<f64> {
    let count = |timed: Timed| f64::from(timed.prompt_tokens);
    let short = count(client.stream(&prompt(0, 10), 1).await?);
    let long = count(client.stream(&prompt(0, 110), 1).await?);
    Ok((long - short) / 100.0)
}

/// Words that no two rounds share a prefix of.
fn prompt(round: u32, words: u32) -> String {
    (0..words).map(|n| format!("{} ", (n + round) * 37 % 97)).collect()
}

fn per_second(count: u32, time: Duration) -> f64 {
    f64::from(count) / time.as_secs_f64()
}
