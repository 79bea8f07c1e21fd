//! The orthonormal Walsh-Hadamard transform.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::simd::{Kernel, LANES, Wide, map_in_place};

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
            let mut half = 1;
            while half < self.row_len {
                for pair in row.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    butterflies(s, a, b);
                }
                half *= 2;
            }
            map_in_place(s, row, |x| s.mul(x, scale));
        }
    }
}

/// `(a, b) = (a + b, a - b)`; the lengths are one power of two, so there are whole vectors or less than one.
#[inline(always)]
fn butterflies<S: Wide>(s: S, a: &mut [f32], b: &mut [f32]) {
    if a.len() < LANES {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (*a + *b, *a - *b);
        }
        return;
    }
    for (a, b) in a.as_chunks_mut::<LANES>().0.iter_mut().zip(b.as_chunks_mut::<LANES>().0) {
        let (x, y) = (s.load(a), s.load(b));
        s.store(s.add(x, y), a);
        s.store(s.sub(x, y), b);
    }
}
