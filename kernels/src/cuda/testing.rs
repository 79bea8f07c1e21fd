//! What the tests of the GPU's ops share.

use std::fmt;

#[cfg(not(feature = "cuda-emulator"))]
use super::compile;
use super::{Elem, Format, Gpu, Tensor, Variant, Weights};
use crate::matmul::{WeightData, WeightMatrix};
use crate::testing::{noise, noise_bytes};
use crate::{Cpu, Isa};

/// What the GPU is compared with; all instruction sets compute the same.
pub(crate) fn cpu() -> Cpu {
    Cpu::single_threaded(Isa::available()[0])
}

/// One device per variant.
pub(crate) fn gpus() -> [Gpu; 2] {
    [gpu(Variant::Exact), gpu(Variant::Official)]
}

/// The emulator, or with the feature `gpu-tests` alone the first GPU of this machine.
pub(crate) fn gpu(variant: Variant) -> Gpu {
    #[cfg(feature = "cuda-emulator")]
    return Gpu::emulated(variant);
    #[cfg(not(feature = "cuda-emulator"))]
    {
        let cache = compile::Cache::new(std::env::temp_dir().join("switchyard-kernels"));
        Gpu::open(0, variant, &cache, &mut |_| {}).unwrap()
    }
}

/// Uploads activations, and returns them as the device holds them.
pub(crate) fn upload(gpu: &Gpu, data: &[f32], cols: usize) -> (Tensor, Vec<f32>) {
    let tensor = Tensor::upload(gpu, gpu.act(), data, cols);
    let data = tensor.download();
    (tensor, data)
}

impl Gpu {
    /// By how much an op's results may differ from the CPU's, relative to their size: two roundings of an activation.
    pub(crate) fn tolerance(&self) -> f32 {
        match self.act() {
            Elem::F32 => 2e-5,
            Elem::Bf16 => 1.0 / 128.0,
        }
    }
}

/// Bytes of a random weight matrix.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    format: Format,
    shape: [usize; 2],
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Matrix {
    /// Columns of FP4 are a multiple of 32.
    pub(crate) fn random(format: Format, shape: [usize; 2], seed: u32) -> Self {
        let scale = |b: u8| 117 + b % 12;
        Self::with_scales(format, shape, seed, scale)
    }

    /// [`random`](Self::random) with scale codes that `scale` makes of random bytes.
    pub(crate) fn with_scales(
        format: Format,
        [rows, cols]: [usize; 2],
        seed: u32,
        scale: impl Fn(u8) -> u8,
    ) -> Self {
        let scales = |len| noise_bytes(seed ^ 7, len).into_iter().map(&scale).collect();
        let values = || noise(seed, rows * cols);
        let (codes, scales) = match format {
            Format::F32 => (values().iter().flat_map(|x| x.to_le_bytes()).collect(), vec![]),
            Format::Bf16 => {
                let bytes = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
                (values().iter().flat_map(bytes).collect(), vec![])
            }
            Format::Fp8 => {
                let no_nan = |b: u8| if b & 0x7f == 0x7f { 0 } else { b };
                let codes = noise_bytes(seed, rows * cols).into_iter().map(no_nan).collect();
                (codes, scales(rows.div_ceil(128) * cols.div_ceil(128)))
            }
            Format::Fp4 => (noise_bytes(seed, rows * cols / 2), scales(rows * (cols / 32))),
        };
        Self { format, shape: [rows, cols], codes, scales }
    }

    /// As the GPU takes it.
    pub(crate) fn upload(&self, gpu: &Gpu) -> Weights {
        Weights::upload(gpu, self.format, self.shape, &self.codes, &self.scales)
    }

    /// As the CPU takes it.
    pub(crate) fn view(&self) -> WeightMatrix<'_> {
        let (codes, scales) = (&self.codes[..], &self.scales[..]);
        let data = match self.format {
            Format::F32 => WeightData::F32(codes),
            Format::Bf16 => WeightData::Bf16(codes),
            Format::Fp8 => WeightData::Fp8 { codes, scales },
            Format::Fp4 => WeightData::Fp4 { codes, scales },
        };
        WeightMatrix::new(self.shape[0], self.shape[1], data).unwrap()
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.format, self.shape)
    }
}
