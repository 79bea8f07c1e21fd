//! Weights on the device, in the checkpoint's formats.

use switchyard_kernels::cuda::{Format, Gpu, Weights};

use crate::backend::Numerics;
use crate::weights::{Matrix, MatrixData};

/// A weight matrix on the device.
#[derive(Debug)]
pub struct CudaMatrix {
    weights: Weights,
    groups: usize,
    quantizes_input: bool,
}

// === impl CudaMatrix ===

impl CudaMatrix {
    /// Copies `source`. In official numerics the inputs of FP8 and FP4 matrices are quantised.
    pub(super) fn new(gpu: &Gpu, source: Matrix<'_>, numerics: Numerics) -> Self {
        let (format, codes, scales): (_, _, &[u8]) = match source.data {
            MatrixData::F32(codes) => (Format::F32, codes, &[]),
            MatrixData::Bf16(codes) => (Format::Bf16, codes, &[]),
            MatrixData::Fp8 { codes, scales } => (Format::Fp8, codes, scales),
            MatrixData::Fp4 { codes, scales } => (Format::Fp4, codes, scales),
        };
        let quantized = matches!(format, Format::Fp8 | Format::Fp4);
        Self {
            weights: Weights::upload(gpu, format, [source.rows, source.cols], codes, scales),
            groups: 1,
            quantizes_input: quantized && numerics == Numerics::Official,
        }
    }

    /// Copies a matrix of `groups` bands, whose input is never quantised.
    pub(super) fn grouped(gpu: &Gpu, source: Matrix<'_>, groups: usize) -> Self {
        Self { groups, ..Self::new(gpu, source, Numerics::Exact) }
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(super) fn into_weights(self) -> Weights {
        self.weights
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn quantizes_input(&self) -> bool {
        self.quantizes_input
    }
}
