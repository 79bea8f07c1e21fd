//! Adding up the experts' answers.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::simd::{Kernel, Wide, axpy};

/// `out = Σ rows`, in the order given (top-k order, then the shared expert), in `f32`; each row is as long as `out`.
///
/// # Panics
///
/// If a row has another length.
pub fn combine(cpu: &Cpu, rows: &[&[f32]], out: &mut [f32]) {
    for row in rows {
        assert_eq!(row.len(), out.len(), "length of an expert's row");
    }
    cpu.run(Combine { rows, out });
}

struct Combine<'a> {
    rows: &'a [&'a [f32]],
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        self.out.fill(0.0);
        for row in self.rows {
            axpy(s, 1.0, row, self.out);
        }
    }
}
