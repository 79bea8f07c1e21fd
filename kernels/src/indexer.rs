//! The lightning indexer: how much each compressed entry matters to a query.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::attention::{KEY_PIECE, KeyPiece, KeyRows};
use crate::simd::{Kernel, LANES, Rows, Wide, dots, padded};

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
        let Self { query, keys, head_dim, scores } = self;
        let num_heads = query.weights.len();
        let mut piece = KeyPiece::new(head_dim);
        let q = padded(query.q, head_dim);
        let q = Rows::new(&q, piece.row_vectors);
        let mut products = vec![[0.0; LANES]; num_heads * KEY_PIECE / LANES];
        for (i, scores) in scores.chunks_mut(KEY_PIECE).enumerate() {
            let keys = piece.load(keys, i * KEY_PIECE);
            let flat = products.as_flattened_mut();
            dots(s, (q, num_heads), keys, |h, j, dot| flat[h * KEY_PIECE + j] = dot);
            for (v, scores) in scores.chunks_mut(LANES).enumerate() {
                let mut sum = s.splat(0.0);
                for (products, &weight) in
                    products.chunks_exact(KEY_PIECE / LANES).zip(query.weights)
                {
                    // The limit comes first, so that NaN passes through.
                    let relu = s.max(s.splat(0.0), s.load(&products[v]));
                    sum = s.mul_add(s.splat(weight), relu, sum);
                }
                s.store_partial(sum, scores);
            }
        }
    }
}

const _: () = assert!(KEY_PIECE.is_multiple_of(LANES), "pieces are whole vectors");
