//! What the tests of all ops share: the op goldens, reproducible inputs, and comparisons.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::sampling::philox4x32;
use crate::{Cpu, Isa};

/// The tensors that an independent implementation computed.
pub(crate) struct Goldens {
    bytes: Vec<u8>,
}

impl Goldens {
    pub(crate) fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/ops.safetensors");
        Self { bytes: std::fs::read(path).unwrap() }
    }

    /// Raw little-endian bytes.
    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().data()
    }

    /// An F32 or BF16 tensor as `f32`.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let data = tensor.data();
        if tensor.dtype() == Dtype::BF16 {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            return data.as_chunks().0.iter().map(widen).collect();
        }
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// An I64 tensor.
    pub(crate) fn ints(&self, name: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::I64);
        tensor.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}

/// One single-threaded `Cpu` per instruction set of this machine.
pub(crate) fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(Cpu::single_threaded).collect()
}

/// Random numbers with a wide spread of magnitudes, the same ones in every run.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let [a, b, c, _] = philox4x32([i, seed, 0, 0], [1, 2]);
            let unit = |bits: u32| (bits >> 8) as f32 / (1 << 24) as f32;
            // A sum of two uniforms is close enough to a bell; one in eight is much smaller.
            let x = 2.0 * (unit(a) + unit(b) - 1.0);
            if c % 8 == 0 { x * 1e-3 } else { x }
        })
        .collect()
}

/// Random bytes, the same ones in every run.
pub(crate) fn noise_bytes(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| philox4x32([i, seed, 1, 0], [1, 2])[0] as u8).collect()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Equality to the bit, with the place of the first difference.
#[track_caller]
pub(crate) fn assert_bits(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), e.to_bits(), "{what}: element {i} is {a:e}, expected {e:e}");
    }
}

/// `|actual - expected| <= tolerance * max(|expected|, scale of all)`.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let rms = (expected.iter().map(|e| e * e).sum::<f32>() / expected.len() as f32).sqrt();
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let bound = tolerance * e.abs().max(rms);
        assert!((a - e).abs() <= bound, "{what}: element {i} is {a:e}, expected {e:e}");
    }
}
