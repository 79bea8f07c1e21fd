//! From logits to a token.
//!
//! A draw is a function of (seed, choice, position) and the logits: nothing is remembered from one token to the next, so a
//! sequence that is replayed draws the same tokens.

mod philox;
#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::gate::topk;
use crate::math::{exp_v, ln};
use crate::simd::{Kernel, LANES, Wide, map_lanes, max, sum};

pub use philox::philox4x32;

/// Terms of a sum that are added in `f32` lanes; their totals are added in `f64`.
const PIECE: usize = 512;

/// How to draw a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 for the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Draw among tokens at least this share as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// Draw among this many most likely tokens, ties to the lower id; 0 for all.
    pub top_k: u32,
    /// Draw among the most likely of these that together reach this share of their probability; 1 for all.
    pub top_p: f32,
    /// Where the random number comes from.
    pub key: DrawKey,
}

/// What is done to a row of logits before a token is drawn. Reported log probabilities are those without it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Adjustment<'a> {
    /// Added to the logits of single tokens; no token twice.
    pub bias: &'a [(u32, f32)],
    /// Tokens that may be drawn: bit `id % 32` of word `id / 32`. `None` for all.
    pub allowed: Option<&'a [u32]>,
}

/// Names one draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// The request's seed.
    pub seed: u64,
    /// Index among the request's choices.
    pub choice: u32,
    /// Absolute position of the token that is drawn.
    pub position: u32,
}

/// Natural logarithms of a distribution's probabilities, without writing them all down.
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    logits: &'a [f32],
    /// `max + ln Σ exp(logit - max)`, kept in two parts.
    max: f32,
    ln_sum: f32,
}

/// The token with the largest logit; ties to the lower id. NaN counts as smallest.
pub fn argmax(cpu: &Cpu, logits: &[f32]) -> u32 {
    let max = cpu.run(Max { x: logits });
    logits.iter().position(|&x| x == max).unwrap_or(0) as u32
}

/// Draws a token from `logits` `[vocab_size]`.
///
/// # Panics
///
/// If there is no logit.
pub fn sample(cpu: &Cpu, logits: &[f32], sampling: &Sampling) -> u32 {
    assert!(!logits.is_empty(), "a vocabulary has tokens");
    if sampling.temperature <= 0.0 {
        return argmax(cpu, logits);
    }
    let mut weights = logits.to_vec();
    let total = cpu.run(SoftmaxWeights { x: &mut weights, temperature: sampling.temperature });
    let uniform = sampling.key.uniform();
    let total = match keep_likely(&mut weights, sampling) {
        Some(kept) => kept,
        None => total,
    };
    if sampling.top_p < 1.0 {
        draw_nucleus(&weights, total * f64::from(sampling.top_p), uniform)
    } else {
        cpu.run(DrawAll { weights: &weights, target: total * uniform })
    }
}

// === impl Adjustment ===

impl Adjustment<'_> {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.bias.is_empty() && self.allowed.is_none()
    }

    /// Adjusts `logits` `[vocab_size]` in place. What may not be drawn becomes negative infinity.
    ///
    /// # Panics
    ///
    /// If a biased token is not in the vocabulary, or `allowed` has no bit for one that is.
    pub fn apply(&self, logits: &mut [f32]) {
        for &(token, bias) in self.bias {
            logits[token as usize] += bias;
        }
        let Some(allowed) = self.allowed else { return };
        assert!(allowed.len() * 32 >= logits.len(), "a bit for every token");
        for (logits, &word) in logits.chunks_mut(32).zip(allowed) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

// === impl LogProbs ===

impl<'a> LogProbs<'a> {
    /// Log-softmax of `logits` `[vocab_size]`.
    pub fn new(cpu: &Cpu, logits: &'a [f32]) -> Self {
        let mut weights = logits.to_vec();
        let max = cpu.run(Max { x: &weights });
        let total = cpu.run(SoftmaxWeights { x: &mut weights, temperature: 1.0 });
        Self { logits, max, ln_sum: ln(total as f32) }
    }

    /// Log probability of a token.
    ///
    /// # Panics
    ///
    /// If the token is not in the vocabulary.
    pub fn get(&self, token: u32) -> f32 {
        (self.logits[token as usize] - self.max) - self.ln_sum
    }

    /// The `num` most likely tokens, most likely first; ties to the lower id.
    pub fn top(&self, num: usize) -> Vec<(u32, f32)> {
        topk(self.logits, num).into_iter().map(|token| (token, self.get(token))).collect()
    }
}

// === impl DrawKey ===

impl DrawKey {
    /// A number in `[0, 1)` of 53 random bits.
    pub fn uniform(&self) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [a, b, _, _] = philox4x32([self.position, self.choice, 0, 0], key);
        let bits = u64::from(a) << 32 | u64::from(b);
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Sets the weights of tokens to 0 that `min_p` and `top_k` rule out; returns the sum of the others. `None` when there is
/// no such rule. The most likely token's weight is 1.
fn keep_likely(weights: &mut [f32], sampling: &Sampling) -> Option<f64> {
    let top_k = sampling.top_k as usize;
    let has_top_k = top_k > 0 && top_k < weights.len();
    if sampling.min_p <= 0.0 && !has_top_k {
        return None;
    }
    for weight in weights.iter_mut().filter(|weight| **weight < sampling.min_p) {
        *weight = 0.0;
    }
    if has_top_k {
        let kept: Vec<_> = topk(weights, top_k)
            .into_iter()
            .map(|token| (token, weights[token as usize]))
            .collect();
        weights.fill(0.0);
        for (token, weight) in kept {
            weights[token as usize] = weight;
        }
    }
    Some(weights.iter().map(|&weight| f64::from(weight)).sum())
}

/// Draws among the most likely tokens whose weights reach `mass`, in falling order.
fn draw_nucleus(weights: &[f32], mass: f64, uniform: f64) -> u32 {
    // Most distributions are narrow: look at a few, and at all only if they do not reach the mass.
    let mut num = 64;
    loop {
        let likely = topk(weights, num);
        let mut sum = 0.0;
        let end = likely.iter().position(|&token| {
            sum += f64::from(weights[token as usize]);
            sum >= mass
        });
        if end.is_none() && likely.len() < weights.len() {
            num *= 16;
            continue;
        }
        let nucleus = &likely[..end.map_or(likely.len(), |end| end + 1)];
        let target = sum * uniform;
        let mut sum = 0.0;
        let drawn = nucleus.iter().find(|&&token| {
            sum += f64::from(weights[token as usize]);
            sum > target
        });
        return *drawn.unwrap_or(&likely[0]);
    }
}

/// Replaces logits by `exp((logit - max) / temperature)` and returns their sum.
struct SoftmaxWeights<'a> {
    x: &'a mut [f32],
    temperature: f32,
}

impl Kernel for SoftmaxWeights<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Wide>(self, s: S) -> f64 {
        let (max, inverse) = (s.splat(max(s, self.x)), s.splat(1.0 / self.temperature));
        let mut total = 0.0;
        for piece in self.x.chunks_mut(PIECE) {
            map_lanes!(s, piece, |x| exp_v(s, s.mul(s.sub(x, max), inverse)));
            total += f64::from(sum(s, piece));
        }
        total
    }
}

struct Max<'a> {
    x: &'a [f32],
}

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Wide>(self, s: S) -> f32 {
        max(s, self.x)
    }
}

/// The first token at which the running sum of weights exceeds `target`: whole pieces first, then within one.
struct DrawAll<'a> {
    weights: &'a [f32],
    target: f64,
}

impl Kernel for DrawAll<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Wide>(self, s: S) -> u32 {
        let mut before = 0.0;
        let mut last_likely = 0;
        for (i, piece) in self.weights.chunks(PIECE).enumerate() {
            let piece_sum = f64::from(sum(s, piece));
            if before + piece_sum > self.target {
                let mut running = before;
                for (j, &weight) in piece.iter().enumerate() {
                    running += f64::from(weight);
                    if weight > 0.0 {
                        last_likely = i * PIECE + j;
                    }
                    if running > self.target {
                        return (i * PIECE + j) as u32;
                    }
                }
                // The lanes' sum was a rounding above the running one: the piece's last likely token it is.
                return last_likely as u32;
            }
            before += piece_sum;
            if let Some(j) = piece.iter().rposition(|&weight| weight > 0.0) {
                last_likely = i * PIECE + j;
            }
        }
        last_likely as u32
    }
}

const _: () = assert!(PIECE.is_multiple_of(LANES), "pieces are whole vectors");
