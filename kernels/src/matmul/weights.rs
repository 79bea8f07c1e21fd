//! Weight matrices as they lie in a checkpoint.

use std::ops::Range;

use crate::Cpu;
use crate::matmul::format::{Bf16, F32, Format, Fp4, Fp8, Row};
use crate::quant::FP4_BLOCK;
use crate::simd::{Kernel, LANES, Wide};

/// Rows, and columns, that share a scale in an FP8 matrix.
pub(crate) const FP8_BLOCK: usize = 128;

/// Largest ue8m0 code of an FP8 scale, `2^119`: times the `2^8` between the exponents of e4m3 and f16, it is still an `f32`.
const FP8_SCALE_MAX: u8 = 127 + 119;

/// The bytes of a matrix `[rows, cols]`, row-major, little-endian, of any alignment.
#[derive(Clone, Copy, Debug)]
pub enum WeightData<'a> {
    /// Four bytes an element.
    F32(&'a [u8]),
    /// Two bytes an element.
    Bf16(&'a [u8]),
    /// One e4m3 code an element, and a ue8m0 scale code per 128 x 128 block: `[ceil(rows / 128), ceil(cols / 128)]`.
    /// The NaN codes, which no checkpoint holds, widen to 480.
    Fp8 {
        /// `[rows, cols]`.
        codes: &'a [u8],
        /// `[ceil(rows / 128), ceil(cols / 128)]`.
        scales: &'a [u8],
    },
    /// Two e2m1 codes a byte (even column in the low nibble), and a ue8m0 scale code per 32 columns. Scale code 255, which no
    /// checkpoint holds, is infinity.
    Fp4 {
        /// `[rows, cols / 2]`.
        codes: &'a [u8],
        /// `[rows, ceil(cols / 32)]`.
        scales: &'a [u8],
    },
}

/// Why bytes are not a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A buffer has the wrong length for the shape.
    #[error("{part} of a [{rows}, {cols}] {format} matrix need {expected} bytes, got {actual}")]
    Length {
        /// "weights" or "scales".
        part: &'static str,
        /// Name of the format.
        format: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A scale beyond what widening by one multiplication can do; no sane checkpoint comes near.
    #[error(
        "scale {block} of an fp8 matrix has the code {code}, above {FP8_SCALE_MAX}; the file is damaged"
    )]
    Scale {
        /// Index of the 128 x 128 block.
        block: usize,
        /// Its ue8m0 code.
        code: u8,
    },
    /// FP4 rows hold whole bytes.
    #[error("an fp4 matrix needs an even number of columns, got {cols}")]
    OddColumns {
        /// Columns of the matrix.
        cols: usize,
    },
}

/// A weight matrix `[rows, cols]` in one of the checkpoint's formats, or consecutive rows of one.
#[derive(Clone, Debug)]
pub struct WeightMatrix<'a> {
    /// First row, counted in `data`: FP8 scales belong to blocks of the whole matrix.
    first_row: usize,
    rows: usize,
    cols: usize,
    data: WeightData<'a>,
}

// === impl WeightMatrix ===

impl<'a> WeightMatrix<'a> {
    /// Takes bytes as a matrix.
    ///
    /// # Errors
    ///
    /// If a length does not fit the shape, or an FP8 scale is absurd.
    pub fn new(rows: usize, cols: usize, data: WeightData<'a>) -> Result<Self, Error> {
        let check = |part, format, expected, bytes: &[u8]| {
            let actual = bytes.len();
            (actual == expected).then_some(()).ok_or(Error::Length {
                part,
                format,
                rows,
                cols,
                expected,
                actual,
            })
        };
        match data {
            WeightData::F32(bytes) => check("weights", "f32", rows * cols * 4, bytes)?,
            WeightData::Bf16(bytes) => check("weights", "bf16", rows * cols * 2, bytes)?,
            WeightData::Fp8 { codes, scales } => {
                check("weights", "fp8", rows * cols, codes)?;
                let blocks = rows.div_ceil(FP8_BLOCK) * cols.div_ceil(FP8_BLOCK);
                check("scales", "fp8", blocks, scales)?;
                if let Some(block) = scales.iter().position(|&code| code > FP8_SCALE_MAX) {
                    return Err(Error::Scale { block, code: scales[block] });
                }
            }
            WeightData::Fp4 { codes, scales } => {
                if !cols.is_multiple_of(2) {
                    return Err(Error::OddColumns { cols });
                }
                check("weights", "fp4", rows * cols / 2, codes)?;
                check("scales", "fp4", rows * cols.div_ceil(FP4_BLOCK), scales)?;
            }
        }
        Ok(Self { first_row: 0, rows, cols, data })
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of weights and scales that a product reads.
    pub fn num_bytes(&self) -> usize {
        match self.data {
            WeightData::F32(_) => self.rows * self.cols * 4,
            WeightData::Bf16(_) => self.rows * self.cols * 2,
            WeightData::Fp8 { .. } => {
                self.rows * self.cols
                    + self.rows.div_ceil(FP8_BLOCK) * self.cols.div_ceil(FP8_BLOCK)
            }
            WeightData::Fp4 { .. } => {
                self.rows * self.cols / 2 + self.rows * self.cols.div_ceil(FP4_BLOCK)
            }
        }
    }

    /// Rows `[start, end)`, without copying.
    ///
    /// # Panics
    ///
    /// If the range is not within the matrix.
    pub fn slice_rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { first_row: self.first_row + rows.start, rows: rows.len(), ..*self }
    }

    /// Widens row `row` to `f32`, exactly: an embedding, a norm's weight.
    ///
    /// # Panics
    ///
    /// If there is no such row, or `out` has not `cols` elements.
    pub fn widen_row(&self, cpu: &Cpu, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "length of the widened row");
        cpu.run(WidenRow { weights: self, row, out });
    }

    pub(super) fn data(&self) -> WeightData<'a> {
        self.data
    }

    /// Codes and scales of a row of `B` bytes per vector.
    #[inline(always)]
    pub(super) fn row<const B: usize>(&self, row: usize) -> Row<'a, B> {
        let row = self.first_row + row;
        let num_bytes = (self.cols * B).div_ceil(LANES);
        let (bytes, scales): (&[u8], &[u8]) = match self.data {
            WeightData::F32(bytes) | WeightData::Bf16(bytes) => (bytes, &[]),
            WeightData::Fp8 { codes, scales } => {
                let per_row = self.cols.div_ceil(FP8_BLOCK);
                let start = row / FP8_BLOCK * per_row;
                (codes, &scales[start..start + per_row])
            }
            WeightData::Fp4 { codes, scales } => {
                let per_row = self.cols.div_ceil(FP4_BLOCK);
                (codes, &scales[row * per_row..(row + 1) * per_row])
            }
        };
        Row::new(&bytes[row * num_bytes..(row + 1) * num_bytes], scales)
    }
}

struct WidenRow<'a> {
    weights: &'a WeightMatrix<'a>,
    row: usize,
    out: &'a mut [f32],
}

impl Kernel for WidenRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Self { weights, row, out } = self;
        match weights.data {
            WeightData::F32(_) => widen(s, F32, weights.row(row), out),
            WeightData::Bf16(_) => widen(s, Bf16, weights.row(row), out),
            WeightData::Fp8 { .. } => widen(s, Fp8, weights.row(row), out),
            WeightData::Fp4 { .. } => widen(s, Fp4, weights.row(row), out),
        }
    }
}

#[inline(always)]
fn widen<S: Wide, F: Format<B>, const B: usize>(s: S, format: F, row: Row<'_, B>, out: &mut [f32]) {
    let (chunks, tail) = out.as_chunks_mut::<LANES>();
    for (i, (codes, out)) in row.chunks.iter().zip(chunks).enumerate() {
        let scale = format.scale(s, row.scale_of(i / F::VECTORS_PER_SCALE));
        s.store(format.widen(s, codes, scale), out);
    }
    if !tail.is_empty() {
        let scale = format.scale(s, row.scale_of(row.chunks.len() / F::VECTORS_PER_SCALE));
        s.store_partial(format.widen(s, &row.tail, scale), tail);
    }
}
