//! Weight matrices on the device, in the checkpoint's formats.

use super::{Gpu, Memory};

/// How a matrix's numbers are stored; see [`crate::quant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
    /// e4m3, with a ue8m0 scale per 128x128.
    Fp8,
    /// e2m1, two to a byte, the even column in the low half, with a ue8m0 scale per row and 32 columns.
    Fp4,
}

/// A matrix `[rows, cols]`, row-major, as it is in the checkpoint.
#[derive(Debug)]
pub struct Weights {
    format: Format,
    rows: usize,
    cols: usize,
    codes: Memory<u8>,
    scales: Memory<u8>,
}

// === impl Format ===

impl Format {
    /// Bytes of a row's codes and the number of scales of a matrix.
    #[must_use]
    fn sizes(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::F32 => (4 * cols, 0),
            Self::Bf16 => (2 * cols, 0),
            Self::Fp8 => (cols, rows.div_ceil(128) * cols.div_ceil(128)),
            Self::Fp4 => (cols / 2, rows * (cols / 32)),
        }
    }
}

// === impl Weights ===

impl Weights {
    /// Copies a matrix to the device.
    ///
    /// # Panics
    ///
    /// If codes or scales are not as many as the shape asks for.
    #[must_use]
    pub fn upload(
        gpu: &Gpu,
        format: Format,
        [rows, cols]: [usize; 2],
        codes: &[u8],
        scales: &[u8],
    ) -> Self {
        let (row_bytes, num_scales) = format.sizes(rows, cols);
        assert_eq!(codes.len(), rows * row_bytes, "bytes of {format:?} codes of {rows} x {cols}");
        assert_eq!(scales.len(), num_scales, "scales of {rows} x {cols} in {format:?}");
        Self { format, rows, cols, codes: gpu.upload(codes), scales: gpu.upload(scales) }
    }

    /// How the numbers are stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
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

    /// The numbers.
    pub(crate) fn codes(&self) -> &Memory<u8> {
        &self.codes
    }

    /// The scales.
    pub(crate) fn scales(&self) -> &Memory<u8> {
        &self.scales
    }
}
