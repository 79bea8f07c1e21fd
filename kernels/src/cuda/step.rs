//! What the kernels need to know of a step's tokens: where each stands, and where its sequence's state is.

use super::{Gpu, Memory, Pod};

/// One token of the step; the twin of `Row` in `common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Absolute position.
    pub position: u32,
    /// Its sequence's place among the rings.
    pub slot: u32,
    /// First row of its span.
    pub first_row: u32,
    /// Absolute position of that row.
    pub first_position: u32,
    /// Where its sequence's blocks begin in [`Step::blocks`].
    pub table: u32,
}

// SAFETY: five numbers without padding.
unsafe impl Pod for Row {}

/// The tokens of a step, row by row. A span is a run of rows with the same `first_row`.
#[derive(Debug)]
pub struct Step {
    rows: Memory<Row>,
    blocks: Memory<u32>,
    num_rows: usize,
}

// === impl Step ===

impl Step {
    /// A step without tokens.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self { rows: gpu.zeros(0), blocks: gpu.zeros(0), num_rows: 0 }
    }

    /// Describes another step. `blocks` are the block tables of its sequences, one after the other.
    pub fn set(&mut self, gpu: &Gpu, rows: &[Row], blocks: &[u32]) {
        if rows.len() > self.rows.len() {
            self.rows = gpu.zeros(rows.len().next_power_of_two());
        }
        if blocks.len() > self.blocks.len() {
            self.blocks = gpu.zeros(blocks.len().next_power_of_two());
        }
        self.rows.write(0, rows);
        self.blocks.write(0, blocks);
        self.num_rows = rows.len();
    }

    /// Tokens.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Every token.
    #[must_use]
    pub fn rows(&self) -> &Memory<Row> {
        &self.rows
    }

    /// Block tables.
    #[must_use]
    pub fn blocks(&self) -> &Memory<u32> {
        &self.blocks
    }
}
