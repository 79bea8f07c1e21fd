//! Rows of `f32`.

/// A matrix in memory, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuTensor {
    data: Vec<f32>,
    cols: usize,
}

impl CpuTensor {
    pub(super) fn new(data: Vec<f32>, cols: usize) -> Self {
        Self { data, cols }
    }

    pub(super) fn num_rows(&self) -> usize {
        self.data.len() / self.cols
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn data(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.data.chunks_mut(self.cols)
    }

    /// Gives it `num_rows` rows; the numbers are whatever was there.
    pub(super) fn resize(&mut self, num_rows: usize) {
        self.data.resize(num_rows * self.cols, 0.0);
    }

    /// [`resize`](Self::resize) with another width.
    pub(super) fn reshape(&mut self, num_rows: usize, cols: usize) {
        self.cols = cols;
        self.resize(num_rows);
    }

    /// Takes other numbers of the same shape, and returns the old ones' memory.
    pub(super) fn replace(&mut self, data: Vec<f32>) -> Vec<f32> {
        debug_assert_eq!(data.len(), self.data.len(), "numbers of a tensor that are replaced");
        std::mem::replace(&mut self.data, data)
    }
}
