//! The gate: which experts see a token, and with what weight.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::math::softplus_v;
use crate::simd::{Kernel, Wide, map_lanes};

/// `sqrt(softplus(logit))`, in place, for any number of tokens.
pub fn gate_scores(cpu: &Cpu, logits: &mut [f32]) {
    cpu.run(GateScores { logits });
}

/// The experts of one token: the `num_topk` largest of `scores + bias`, largest first, ties to the lower index.
/// `scores` and `bias` are `[num_experts]`; a bias takes part in the selection only.
///
/// # Panics
///
/// If the lengths differ.
pub fn select_experts(scores: &[f32], bias: &[f32], num_topk: usize) -> Vec<u32> {
    assert_eq!(scores.len(), bias.len(), "length of the bias");
    let biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    topk(&biased, num_topk)
}

/// Indices of the `num_topk` largest values (all, if there are fewer), largest first; ties to the lower index, NaN last.
pub fn topk(values: &[f32], num_topk: usize) -> Vec<u32> {
    let mut idx: Vec<u32> = (0..values.len() as u32).collect();
    let order = |&a: &u32, &b: &u32| {
        let key = |i: u32| descending_key(values[i as usize]);
        key(a).cmp(&key(b)).then(a.cmp(&b))
    };
    if num_topk < idx.len() {
        if num_topk == 0 {
            return Vec::new();
        }
        idx.select_nth_unstable_by(num_topk - 1, order);
        idx.truncate(num_topk);
    }
    idx.sort_unstable_by(order);
    idx
}

/// `weights[i] = scores[idx[i]] / Σ scores[idx] * scaling_factor`, with `scores` `[num_experts]` of one token, not biased.
///
/// # Panics
///
/// If the lengths of `idx` and `weights` differ, or an index is out of range.
pub fn routing_weights(scores: &[f32], idx: &[u32], scaling_factor: f32, weights: &mut [f32]) {
    assert_eq!(idx.len(), weights.len(), "length of the routing weights");
    for (weight, &i) in weights.iter_mut().zip(idx) {
        *weight = scores[i as usize];
    }
    let sum: f32 = weights.iter().sum();
    for weight in weights {
        *weight = *weight / sum * scaling_factor;
    }
}

/// Orders floats from large to small, zeros of either sign alike, NaN last.
fn descending_key(value: f32) -> i32 {
    if value.is_nan() {
        return i32::MAX;
    }
    let bits = (value + 0.0).to_bits().cast_signed();
    // Ascending order of the value is ascending order of this integer.
    let ascending = if bits < 0 { bits ^ i32::MAX } else { bits };
    !ascending
}

struct GateScores<'a> {
    logits: &'a mut [f32],
}

impl Kernel for GateScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        map_lanes!(s, self.logits, |z| s.sqrt(softplus_v(s, z)));
    }
}
