//! Parameters of a model's true names, shapes and formats, and of no meaning: to measure with, where there is no
//! checkpoint. Every matrix of a format is the start of one and the same buffer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use switchyard_moe::config::{FP4_BLOCK, FP8_BLOCK, ModelConfig};
use switchyard_moe::ids::EpRank;
use switchyard_moe::placement::Placement;

use super::layout::{self, Expected, Kind};
use super::{Error, Matrix, MatrixData, Source};

#[cfg(test)]
mod tests;

/// Bytes after which the numbers repeat: a multiple of every number's size, and coprime to every row's but for that.
const PERIOD_BYTES: usize = 4 * 1_000_003;
/// Exponents around `1 / sqrt(hidden)`, as they are stored.
const BF16_EXPONENT: u16 = 121;
const F32_EXPONENT: u32 = 120;
const SCALE_MIN: u8 = 119;

/// A made-up checkpoint.
#[derive(Debug)]
pub struct Synthetic {
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
    f32: Vec<u8>,
    bf16: Vec<u8>,
    fp8: Vec<u8>,
    fp4: Vec<u8>,
    scales: Vec<u8>,
}

#[derive(Debug)]
struct Tensor {
    shape: Vec<usize>,
    format: Format,
}

/// What the released checkpoints store a tensor as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
    Fp8,
    Fp4,
    ExpertIds,
}

// === impl Format ===

impl Format {
    fn of(expected: &Expected) -> Self {
        let cols = expected.shape.last().copied().unwrap_or_default();
        let is_routed = layout::routed_expert(&expected.name).is_some();
        match expected.kind {
            Kind::ExpertIds => Self::ExpertIds,
            Kind::Quantizable if is_routed && cols.is_multiple_of(FP4_BLOCK) => Self::Fp4,
            Kind::Quantizable => Self::Fp8,
            Kind::Float if expected.name.ends_with(".weight") => Self::Bf16,
            Kind::Float => Self::F32,
        }
    }
}

// === impl Tensor ===

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the numbers, and of the scales.
    fn sizes(&self) -> (usize, usize) {
        let len = self.len();
        match self.format {
            Format::F32 => (4 * len, 0),
            Format::Bf16 => (2 * len, 0),
            Format::Fp8 => (len, self.shape.iter().map(|n| n.div_ceil(FP8_BLOCK)).product()),
            Format::Fp4 => (len / 2, len / FP4_BLOCK),
            Format::ExpertIds => (8 * len, 0),
        }
    }

    fn num_bytes(&self) -> usize {
        let (codes, scales) = self.sizes();
        codes + scales
    }
}

// === impl Synthetic ===

impl Synthetic {
    /// The parameters of a model of configuration `config`, the same ones every time.
    #[must_use]
    pub fn new(config: ModelConfig) -> Self {
        let tensors = Self::tensors_of(&config);
        let longest = |format| {
            let of_format = tensors.values().filter(|tensor| tensor.format == format);
            of_format.map(|tensor| tensor.sizes().0).max().unwrap_or(0)
        };
        let scales = tensors.values().map(|tensor| tensor.sizes().1).max().unwrap_or(0);
        let bf16 = |[low, high]: [u8; 2]| {
            let bits = u16::from_le_bytes([low, high]);
            ((bits & 0x807f) | (BF16_EXPONENT << 7)).to_le_bytes()
        };
        let f32 = |bytes: [u8; 4]| {
            let bits = u32::from_le_bytes(bytes);
            ((bits & 0x807f_ffff) | (F32_EXPONENT << 23)).to_le_bytes()
        };
        Self {
            f32: noise(longest(Format::F32), f32),
            bf16: noise(longest(Format::Bf16), bf16),
            // Without the upper half of the exponents, where infinity would be.
            fp8: noise(longest(Format::Fp8), |[code]: [u8; 1]| [code & 0xbf]),
            fp4: noise(longest(Format::Fp4), |code: [u8; 1]| code),
            scales: noise(scales, |[code]: [u8; 1]| [SCALE_MIN + code % 3]),
            config,
            tensors,
        }
    }

    fn tensors_of(config: &ModelConfig) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        // The visitor never fails.
        let _ = layout::for_each_tensor(config, &mut |expected| {
            let format = Format::of(&expected);
            tensors.insert(expected.name, Tensor { shape: expected.shape, format });
            Ok(())
        });
        tensors
    }

    /// Bytes of the tensors whose name `wanted` likes.
    #[must_use]
    pub fn num_bytes_where(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
        tensors.map(|(_, tensor)| tensor.num_bytes() as u64).sum()
    }

    /// Bytes of one routed expert of `layer`.
    #[must_use]
    pub fn expert_bytes(&self, layer: usize) -> u64 {
        let prefix = format!("layers.{layer}.ffn.experts.0.");
        self.num_bytes_where(|name| name.starts_with(&prefix))
    }

    fn tensor(&self, name: &str) -> Result<(&str, &Tensor), Error> {
        let found = self.tensors.get_key_value(name).map(|(name, tensor)| (name.as_str(), tensor));
        found.ok_or_else(|| Error::Missing { dir: PathBuf::new(), tensor: name.to_owned() })
    }
}

impl Source for Synthetic {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tokenizer(&self) -> Option<PathBuf> {
        None
    }

    fn num_bytes_for(&self, rank: EpRank, placement: &Placement) -> u64 {
        self.num_bytes_where(|name| match layout::routed_expert(name) {
            Some((layer, expert)) => placement
                .layers()
                .get(layer)
                .is_some_and(|layer| layer.experts_of(rank).contains(&Some(expert))),
            None => true,
        })
    }

    fn has_quantized_experts(&self) -> bool {
        let mut experts =
            self.tensors.iter().filter(|(name, _)| layout::routed_expert(name).is_some());
        experts.all(|(_, tensor)| matches!(tensor.format, Format::Fp8 | Format::Fp4))
    }

    fn num_bytes_of(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, Tensor::num_bytes)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>, Error> {
        let (name, tensor) = self.tensor(name)?;
        let (len, num_scales) = tensor.sizes();
        let scales = &self.scales[..num_scales];
        let data = match tensor.format {
            Format::F32 | Format::ExpertIds => MatrixData::F32(&self.f32[..len]),
            Format::Bf16 => MatrixData::Bf16(&self.bf16[..len]),
            Format::Fp8 => MatrixData::Fp8 { codes: &self.fp8[..len], scales },
            Format::Fp4 => MatrixData::Fp4 { codes: &self.fp4[..len], scales },
        };
        let (rows, cols) = match *tensor.shape {
            [rows, cols] => (rows, cols),
            _ => (1, tensor.len()),
        };
        Ok(Matrix { name, rows, cols, data })
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        let (name, tensor) = self.tensor(name)?;
        if name.ends_with("norm.weight") {
            return Ok(vec![1.0; tensor.len()]);
        }
        let numbers = self.f32.as_chunks().0.iter().cycle().take(tensor.len());
        Ok(numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn expert_ids(&self, name: &str) -> Result<Vec<u32>, Error> {
        let (_, tensor) = self.tensor(name)?;
        let (num_experts, num_topk) =
            (self.config.n_routed_experts as u64, self.config.num_experts_per_tok);
        let mut state = tensor.len() as u64;
        let mut ids = Vec::with_capacity(tensor.len());
        while ids.len() < tensor.len() {
            let row = ids.len() - ids.len() % num_topk;
            let id = (random(&mut state) % num_experts) as u32;
            if !ids[row..].contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// `len` bytes of numbers that `shape` makes of random ones.
fn noise<const N: usize>(len: usize, shape: impl Fn([u8; N]) -> [u8; N]) -> Vec<u8> {
    let mut state = N as u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len.min(PERIOD_BYTES) {
        let word = random(&mut state).to_le_bytes();
        bytes.extend(word.as_chunks().0.iter().flat_map(|number| shape(*number)));
    }
    bytes.truncate(len.min(PERIOD_BYTES));
    while bytes.len() < len {
        bytes.extend_from_within(
            ..(len - bytes.len()).min(bytes.len() / PERIOD_BYTES * PERIOD_BYTES),
        );
    }
    bytes
}

/// The next number of a sequence that looks random (`SplitMix64`).
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
