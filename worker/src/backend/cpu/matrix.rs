//! Weights in memory, in the checkpoint's formats.

use switchyard_kernels::matmul::{WeightData, WeightMatrix};

use crate::backend::Numerics;
use crate::weights::{Matrix, MatrixData};

/// A weight matrix, copied out of the checkpoint's pages in the order in which products read it.
#[derive(Debug)]
pub struct CpuMatrix {
    rows: usize,
    cols: usize,
    format: Format,
    codes: Box<[u8]>,
    scales: Box<[u8]>,
    groups: usize,
    quantizes_input: bool,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    F32,
    Bf16,
    Fp8,
    Fp4,
}

impl CpuMatrix {
    /// Copies `source`. In official numerics the inputs of FP8 and FP4 matrices are quantised.
    pub(super) fn new(source: Matrix<'_>, numerics: Numerics) -> Self {
        let (format, codes, scales): (_, _, &[u8]) = match source.data {
            MatrixData::F32(codes) => (Format::F32, codes, &[]),
            MatrixData::Bf16(codes) => (Format::Bf16, codes, &[]),
            MatrixData::Fp8 { codes, scales } => (Format::Fp8, codes, scales),
            MatrixData::Fp4 { codes, scales } => (Format::Fp4, codes, scales),
        };
        let quantized = matches!(format, Format::Fp8 | Format::Fp4);
        Self {
            rows: source.rows,
            cols: source.cols,
            format,
            codes: codes.into(),
            scales: scales.into(),
            groups: 1,
            quantizes_input: quantized && numerics == Numerics::Official,
        }
    }

    /// Copies a matrix of `groups` bands, whose input is never quantised.
    pub(super) fn grouped(source: Matrix<'_>, groups: usize) -> Self {
        Self { groups, ..Self::new(source, Numerics::Exact) }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn quantizes_input(&self) -> bool {
        self.quantizes_input
    }

    #[expect(clippy::expect_used, reason = "the checkpoint was checked against these very shapes")]
    pub(super) fn view(&self) -> WeightMatrix<'_> {
        let (codes, scales) = (&*self.codes, &*self.scales);
        let data = match self.format {
            Format::F32 => WeightData::F32(codes),
            Format::Bf16 => WeightData::Bf16(codes),
            Format::Fp8 => WeightData::Fp8 { codes, scales },
            Format::Fp4 => WeightData::Fp4 { codes, scales },
        };
        WeightMatrix::new(self.rows, self.cols, data).expect("a matrix of a checked checkpoint")
    }
}
