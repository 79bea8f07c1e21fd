//! What a group did in the last seconds, as rates. For people who look; alerts count with the metrics.

use std::time::Duration;

use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Whole seconds that a rate looks back, besides the one under way.
const WINDOW_SECONDS: usize = 5;
/// One for each of these seconds, and one for that under way.
const SLOTS: usize = WINDOW_SECONDS + 1;

/// Sums of the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Window {
    slots: [f64; SLOTS],
    /// The second that was added to last, counted from the beginning.
    newest: u64,
}

/// What a group and its ranks did lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// When something was first noted.
    began: Option<Instant>,
    answers: Window,
    generated: Window,
    prefilled: Window,
    steps: Window,
    step_seconds: Window,
    ranks: Vec<RankActivity>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct RankActivity {
    tokens: Window,
    steps: Window,
    seconds: Window,
}

/// One rank's own account of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankStep {
    /// How long it took.
    pub time: Duration,
    /// Tokens that it computed.
    pub num_tokens: u32,
}

/// Means over the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Answers completed, per second; each choice of a request is one.
    pub answers: f64,
    /// Tokens generated and passed on, per second.
    pub generated_tokens: f64,
    /// Tokens of prompts that were planned to be computed, per second.
    pub prefill_tokens: f64,
    /// Duration of a step in seconds; `None` when there was none.
    pub step_seconds: Option<f64>,
    /// By rank, `[world_size]` of the present group.
    pub ranks: Vec<RankRates>,
}

/// The same of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankRates {
    /// Tokens computed, per second.
    pub tokens: f64,
    /// The rank's own account of a step's duration in seconds; `None` when there was none.
    pub step_seconds: Option<f64>,
}

// === impl Window ===

impl Window {
    fn add(&mut self, second: u64, amount: f64) {
        self.advance(second);
        self.slots[slot(self.newest)] += amount;
    }

    /// Forgets the seconds that lie too far back from `second`.
    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.newest).min(SLOTS as u64);
        (0..passed).for_each(|back| self.slots[slot(second - back)] = 0.0);
        self.newest = self.newest.max(second);
    }

    fn sum(mut self, second: u64) -> f64 {
        self.advance(second);
        self.slots.iter().sum()
    }
}

fn slot(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}

// === impl Activity ===

impl Activity {
    /// A group of so many ranks begins: nothing is known of them.
    pub(super) fn formed(&mut self, world_size: usize) {
        self.ranks = vec![RankActivity::default(); world_size];
    }

    /// The group is gone.
    pub(super) fn lost(&mut self) {
        self.ranks.clear();
    }

    /// A step was planned with so many tokens of prompts.
    pub(super) fn planned(&mut self, now: Instant, prefill_tokens: usize) {
        let second = self.second(now);
        self.prefilled.add(second, prefill_tokens as f64);
    }

    /// A step is over on all ranks.
    pub(super) fn committed(&mut self, now: Instant, duration: Duration, ranks: &[RankStep]) {
        let second = self.second(now);
        self.steps.add(second, 1.0);
        self.step_seconds.add(second, duration.as_secs_f64());
        for (activity, step) in self.ranks.iter_mut().zip(ranks) {
            activity.tokens.add(second, step.num_tokens.into());
            activity.steps.add(second, 1.0);
            activity.seconds.add(second, step.time.as_secs_f64());
        }
    }

    /// A token was passed on.
    pub(super) fn generated(&mut self, now: Instant) {
        let second = self.second(now);
        self.generated.add(second, 1.0);
    }

    /// An answer is complete.
    pub(super) fn answered(&mut self, now: Instant) {
        let second = self.second(now);
        self.answers.add(second, 1.0);
    }

    /// Means over the last seconds.
    #[must_use]
    pub fn rates(&self, now: Instant) -> Rates {
        let Some(began) = self.began else { return Rates::default() };
        let age = now.saturating_duration_since(began).as_secs_f64();
        let second = age as u64;
        // Below a second, the first token would be a thousand per second.
        let covered = (WINDOW_SECONDS as f64 + age.fract()).min(age).max(1.0);
        let rate = |window: Window| window.sum(second) / covered;
        let mean = |sums: Window, counts: Window| {
            let count = counts.sum(second);
            (count > 0.0).then(|| sums.sum(second) / count)
        };
        let rank = |rank: &RankActivity| RankRates {
            tokens: rate(rank.tokens),
            step_seconds: mean(rank.seconds, rank.steps),
        };
        Rates {
            answers: rate(self.answers),
            generated_tokens: rate(self.generated),
            prefill_tokens: rate(self.prefilled),
            step_seconds: mean(self.step_seconds, self.steps),
            ranks: self.ranks.iter().map(rank).collect(),
        }
    }

    fn second(&mut self, now: Instant) -> u64 {
        let began = *self.began.get_or_insert(now);
        now.saturating_duration_since(began).as_secs()
    }
}
