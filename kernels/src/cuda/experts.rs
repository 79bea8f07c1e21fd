//! Products of tokens that are sorted by expert; see [`crate::matmul::matmul_grouped`].

use super::matmul::{Sorted, sorted_product};
use super::{Format, Gpu, Memory, Tensor, Weights};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// One of the three matrices of all experts that a layer has on this rank, by slot; `None` is an empty slot.
#[derive(Debug)]
pub struct ExpertMatrices {
    slots: Vec<Option<Weights>>,
    /// Addresses of codes and scales of each slot, `[slots, 2]`; 0 for an empty slot.
    table: Memory<u64>,
    format: Format,
    rows: usize,
    cols: usize,
}

// === impl ExpertMatrices ===

impl ExpertMatrices {
    /// Matrices of one shape and format. If all slots are empty they are 0 x 0.
    ///
    /// # Panics
    ///
    /// If shapes or formats differ.
    #[must_use]
    pub fn new(gpu: &Gpu, slots: Vec<Option<Weights>>) -> Self {
        let kind = |weights: &Weights| (weights.format(), weights.rows(), weights.cols());
        let mut kinds = slots.iter().flatten().map(kind);
        let (format, rows, cols) = kinds.next().unwrap_or((Format::Bf16, 0, 0));
        for other in kinds {
            assert_eq!(other, (format, rows, cols), "format and shape of the experts of a layer");
        }
        let addresses = |slot: &Option<Weights>| match slot {
            Some(weights) => [weights.codes().address(), weights.scales().address()],
            None => [0, 0],
        };
        let table = gpu.upload(slots.iter().flat_map(addresses).collect::<Vec<_>>().as_slice());
        Self { slots, table, format, rows, cols }
    }

    /// Slots, empty ones too.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Each row of `x` `[capacity, cols]`, in activations, times the matrix of its slot. Rows are sorted by slot: those of slot s
/// begin at `offsets[s]`, and `offsets` `[num_slots + 1]` is known to the device only. `out` becomes `[capacity, rows]` in activations;
/// rows of empty slots become zeros, rows from `offsets[num_slots]` on are neither read nor written.
///
/// # Panics
///
/// If `x` has another width, or `offsets` another length.
pub fn matmul_experts(
    gpu: &Gpu,
    x: &Tensor,
    matrices: &ExpertMatrices,
    offsets: &Memory<u32>,
    out: &mut Tensor,
) {
    assert!(offsets.len() > matrices.num_slots(), "offsets of the slots");
    out.shape(gpu.act(), x.num_rows(), matrices.rows);
    if matrices.rows == 0 {
        return;
    }
    assert_eq!(x.cols(), matrices.cols, "width of x and columns of the experts");
    let ExpertMatrices { table, format, rows, .. } = matrices;
    sorted_product(gpu, &Sorted { x, table, offsets, format: *format, rows: *rows }, out);
}
