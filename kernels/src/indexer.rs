//! The lightning indexer: how much each compressed entry matters to a query.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::attention::KeyRows;
use crate::simd::{Kernel, LANES, Wide, dot};

/// One query token.
#[derive(Clone, Copy, Debug)]
pub struct IndexerQuery<'a> {
    /// `[num_heads, head_dim]`
    pub q: &'a [f32],
    /// Head weights with their constant factors, `[num_heads]`.
    pub weights: &'a [f32],
}

/// `scores[w] = Σ_h weights[h] relu(q[h] · keys[w])`, heads in order.
///
/// # Panics
///
/// If `scores` has not one element per key, or a length does not fit.
pub fn indexer_scores(cpu: &Cpu, query: &IndexerQuery<'_>, keys: KeyRows<'_>, scores: &mut [f32]) {
    assert_eq!(keys.len(), scores.len(), "length of the scores");
    assert_eq!(query.q.len() % query.weights.len(), 0, "length of the query");
    let head_dim = query.q.len() / query.weights.len();
    cpu.run(IndexerScores { query, keys, head_dim, scores });
}

struct IndexerScores<'a> {
    query: &'a IndexerQuery<'a>,
    keys: KeyRows<'a>,
    head_dim: usize,
    scores: &'a mut [f32],
}

impl Kernel for IndexerScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let mut key = vec![0.0; self.head_dim.next_multiple_of(LANES)];
        let key = &mut key[..self.head_dim];
        for (w, score) in self.scores.iter_mut().enumerate() {
            self.keys.widen(s, w, key);
            let heads = self.query.q.chunks_exact(self.head_dim).zip(self.query.weights);
            *score = heads.fold(0.0, |sum, (q, &weight)| {
                let relu = Wide::sum(s, s.splat(0.0)).max(dot(s, q, key));
                weight.mul_add(relu, sum)
            });
        }
    }
}
