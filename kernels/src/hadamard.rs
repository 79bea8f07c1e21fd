//! The orthonormal Walsh-Hadamard transform.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::simd::{Kernel, LANES, Wide, map_lanes};

/// Transforms each row of `x` `[num_rows, row_len]` in place: Sylvester's matrix in natural order, times `row_len^-0.5`.
///
/// # Panics
///
/// If `row_len` is no power of two, or `x` does not hold whole rows.
pub fn hadamard(cpu: &Cpu, x: &mut [f32], row_len: usize) {
    assert!(row_len.is_power_of_two(), "row length {row_len} is no power of two");
    assert_eq!(x.len() % row_len, 0, "length of x over rows of {row_len}");
    cpu.run(Hadamard { x, row_len });
}

struct Hadamard<'a> {
    x: &'a mut [f32],
    row_len: usize,
}

impl Kernel for Hadamard<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let scale = s.splat(1.0 / (self.row_len as f32).sqrt());
        for row in self.x.chunks_exact_mut(self.row_len) {
            // Rows shorter than a vector are padded, and do without the last steps, which would mix the padding in.
            map_lanes!(s, row, |x| within_vector(s, x, self.row_len));
            let mut half = LANES;
            while half < self.row_len {
                for pair in row.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    butterflies(s, a, b);
                }
                half *= 2;
            }
            map_lanes!(s, row, |x| s.mul(x, scale));
        }
    }
}

/// The steps between lanes of one vector, up to those `row_len / 2` apart.
#[inline(always)]
fn within_vector<S: Wide>(s: S, x: S::F, row_len: usize) -> S::F {
    let x = if row_len > 1 { between_lanes::<S, 1>(s, x) } else { x };
    let x = if row_len > 2 { between_lanes::<S, 2>(s, x) } else { x };
    let x = if row_len > 4 { between_lanes::<S, 4>(s, x) } else { x };
    if row_len > 8 { between_lanes::<S, 8>(s, x) } else { x }
}

/// Lanes `i` and `i + N` become their sum and difference: each is the other one plus or minus itself.
#[inline(always)]
fn between_lanes<S: Wide, const N: usize>(s: S, x: S::F) -> S::F {
    const SIGNS: [[f32; LANES]; 4] = {
        let mut signs = [[1.0; LANES]; 4];
        let mut i = 0;
        while i < 4 * LANES {
            if (i % LANES) & (1 << (i / LANES)) != 0 {
                signs[i / LANES][i % LANES] = -1.0;
            }
            i += 1;
        }
        signs
    };
    s.mul_add(x, s.load(&SIGNS[N.trailing_zeros() as usize]), s.swap::<N>(x))
}

/// `(a, b) = (a + b, a - b)` of whole vectors.
#[inline(always)]
fn butterflies<S: Wide>(s: S, a: &mut [f32], b: &mut [f32]) {
    for (a, b) in a.as_chunks_mut::<LANES>().0.iter_mut().zip(b.as_chunks_mut::<LANES>().0) {
        let (x, y) = (s.load(a), s.load(b));
        s.store(s.add(x, y), a);
        s.store(s.sub(x, y), b);
    }
}
