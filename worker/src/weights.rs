//! The checkpoint: opened through a memory map and checked in full before a number of it is used.
//!
//! - `table`: names, shapes, types and byte ranges, from the headers of the safetensors files.
//! - `layout`: the tensors that a model of a given configuration consists of.
//! - [`Source`]: what a rank reads its parameters from: a checkpoint, or [`Synthetic`] numbers to measure with.
//! - [`fingerprint()`]: by which the ranks of a group know that they hold the same checkpoint.
//!
//! Files are not trusted: whatever they contain, opening either succeeds or returns an [`Error`] that names the file
//! and the tensor.

use std::fs;
use std::path::{Path, PathBuf};

use switchyard_moe::config::{FP4_BLOCK, FP8_BLOCK, ModelConfig};
use switchyard_moe::ids::EpRank;
use switchyard_moe::placement::Placement;

mod error;
mod fingerprint;
mod layout;
mod source;
mod synthetic;
mod table;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use fingerprint::fingerprint;
pub use source::Source;
pub use synthetic::Synthetic;
pub(crate) use synthetic::random;
pub use table::Dtype;

use layout::{Expected, Kind};
use table::{Tensor, TensorTable};

/// Largest E8M0 code of a scale that is computed with: times the largest FP8 number it stays finite.
const SCALE_CODE_MAX: u8 = 246;

/// A checked checkpoint. Cheap to keep: its data stay in the page cache until they are read.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    table: TensorTable,
}

/// A weight matrix `[rows, cols]` as the checkpoint stores it.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Name of the tensor, for messages.
    pub name: &'a str,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// The numbers.
    pub data: MatrixData<'a>,
}

/// The numbers of a [`Matrix`], row-major, little-endian.
#[derive(Clone, Copy, Debug)]
pub enum MatrixData<'a> {
    /// 4 bytes each.
    F32(&'a [u8]),
    /// 2 bytes each.
    Bf16(&'a [u8]),
    /// E4M3 codes with one E8M0 scale per block of [`FP8_BLOCK`] x [`FP8_BLOCK`].
    Fp8 {
        /// `[rows, cols]`
        codes: &'a [u8],
        /// `[ceil(rows / 128), ceil(cols / 128)]`
        scales: &'a [u8],
    },
    /// E2M1 codes, the even column in the low nibble, with one E8M0 scale per [`FP4_BLOCK`] columns of a row.
    Fp4 {
        /// `[rows, cols / 2]`
        codes: &'a [u8],
        /// `[rows, cols / 32]`
        scales: &'a [u8],
    },
}

impl MatrixData<'_> {
    /// Whether official numerics quantise what is multiplied with it.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        match self {
            Self::F32(_) | Self::Bf16(_) => false,
            Self::Fp8 { .. } | Self::Fp4 { .. } => true,
        }
    }

    /// Bytes in the checkpoint, scales included.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::F32(data) | Self::Bf16(data) => data.len(),
            Self::Fp8 { codes, scales } | Self::Fp4 { codes, scales } => codes.len() + scales.len(),
        }
    }
}

// === impl Checkpoint ===

impl Checkpoint {
    /// Opens the checkpoint in `dir`: `config.json`, and the shards that `model.safetensors.index.json` lists, or else
    /// every `model*.safetensors`. Checks that each tensor of the model is there once, in the right shape, in a type
    /// this engine computes with, and that there is no other (`mtp.*` is allowed and not used).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let config = read_config(dir)?;
        let table = TensorTable::open(dir)?;
        let checkpoint = Self { dir: dir.to_owned(), config, table };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Where the tokenizer would be; not checked.
    #[must_use]
    pub fn tokenizer(&self) -> PathBuf {
        self.dir.join("tokenizer.json")
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that `rank` reads under `placement`: everything but other ranks' experts and `mtp.*`.
    #[must_use]
    pub fn num_bytes_for(&self, rank: EpRank, placement: &Placement) -> u64 {
        let needed = |name: &str| match layout::routed_expert(name) {
            Some((layer, expert)) => placement
                .layers()
                .get(layer)
                .is_some_and(|layer| layer.experts_of(rank).contains(&Some(expert))),
            None => !layout::is_ignored(name),
        };
        self.table
            .iter()
            .filter(|(name, _)| needed(name))
            .map(|(_, tensor)| tensor.num_bytes() as u64)
            .sum()
    }

    /// Whether official numerics quantise the inputs of every routed expert.
    #[must_use]
    pub fn has_quantized_experts(&self) -> bool {
        let mut experts =
            self.table.iter().filter(|(name, _)| layout::routed_expert(name).is_some());
        experts.all(|(_, tensor)| matches!(tensor.dtype, Dtype::F8E4m3 | Dtype::I8 | Dtype::F8E8m0))
    }

    /// Bytes of tensor `name`, 0 if there is none.
    #[must_use]
    pub fn num_bytes_of(&self, name: &str) -> usize {
        self.table.get(name).map_or(0, |(_, tensor)| tensor.num_bytes())
    }

    /// The matrix in tensor `name`, with its scales if it has any.
    ///
    /// # Errors
    /// When it is missing, in a type or shape that [`open`](Self::open) would refuse, or has an impossible scale.
    pub fn matrix(&self, name: &str) -> Result<Matrix<'_>, Error> {
        let (key, tensor) = self.tensor(name)?;
        let scales = || self.scales(key);
        let codes = self.table.bytes(tensor);
        let (data, packing) = match tensor.dtype {
            Dtype::F32 => (MatrixData::F32(codes), 1),
            Dtype::Bf16 => (MatrixData::Bf16(codes), 1),
            Dtype::F8E4m3 => (MatrixData::Fp8 { codes, scales: scales()? }, 1),
            Dtype::I8 => (MatrixData::Fp4 { codes, scales: scales()? }, 2),
            Dtype::F8E8m0 | Dtype::I64 | Dtype::Other => return Err(self.unsupported(key, tensor)),
        };
        match *tensor.shape {
            [rows, cols] => Ok(Matrix { name: key, rows, cols: cols * packing, data }),
            _ => Err(self.misshapen(key, tensor, "a matrix".to_owned())),
        }
    }

    /// The numbers of the vector or small matrix `name` (whole tensor name), widened to f32.
    ///
    /// # Errors
    /// When it is missing or neither F32 nor BF16.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        let (key, tensor) = self.tensor(name)?;
        let bytes = self.table.bytes(tensor);
        match tensor.dtype {
            Dtype::F32 => {
                Ok(bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
            }
            Dtype::Bf16 => Ok(bytes
                .as_chunks()
                .0
                .iter()
                .map(|chunk| f32::from_bits(u32::from(u16::from_le_bytes(*chunk)) << 16))
                .collect()),
            Dtype::F8E4m3 | Dtype::F8E8m0 | Dtype::I8 | Dtype::I64 | Dtype::Other => {
                Err(self.unsupported(key, tensor))
            }
        }
    }

    /// The expert ids of `gate.tid2eid` tensor `name`, `[vocab_size, num_experts_per_tok]`.
    ///
    /// # Errors
    /// When it is missing, not I64, or an id is not that of a routed expert.
    pub fn expert_ids(&self, name: &str) -> Result<Vec<u32>, Error> {
        let (key, tensor) = self.tensor(name)?;
        if tensor.dtype != Dtype::I64 {
            return Err(self.unsupported(key, tensor));
        }
        let num_experts = self.config.n_routed_experts;
        self.table
            .bytes(tensor)
            .as_chunks()
            .0
            .iter()
            .enumerate()
            .map(|(index, chunk)| {
                let id = i64::from_le_bytes(*chunk);
                u32::try_from(id).ok().filter(|&id| (id as usize) < num_experts).ok_or_else(|| {
                    Error::ExpertId {
                        file: self.table.path_of(tensor).to_owned(),
                        tensor: key.to_owned(),
                        index,
                        id,
                        num_experts,
                    }
                })
            })
            .collect()
    }

    fn scales(&self, weight: &str) -> Result<&[u8], Error> {
        let (name, scale) = self.tensor(&scale_name(weight))?;
        let codes = self.table.bytes(scale);
        match codes.iter().position(|&code| code > SCALE_CODE_MAX) {
            Some(index) => Err(Error::Scale {
                file: self.table.path_of(scale).to_owned(),
                tensor: name.to_owned(),
                index,
                code: codes[index],
            }),
            None => Ok(codes),
        }
    }

    fn tensor(&self, name: &str) -> Result<(&str, &Tensor), Error> {
        self.table
            .get(name)
            .ok_or_else(|| Error::Missing { dir: self.dir.clone(), tensor: name.to_owned() })
    }

    fn check(&self) -> Result<(), Error> {
        // Tensors found are counted by name; scales are visited with their weights.
        let mut known = std::collections::BTreeSet::new();
        layout::for_each_tensor(&self.config, &mut |expected| {
            let (name, tensor) = self.tensor(&expected.name)?;
            known.insert(name);
            if let Some(scale) = self.check_tensor(name, tensor, &expected)? {
                known.insert(scale);
            }
            Ok(())
        })?;
        for (name, tensor) in self.table.iter() {
            if !known.contains(name) && !layout::is_ignored(name) {
                return Err(Error::Unexpected {
                    file: self.table.path_of(tensor).to_owned(),
                    tensor: name.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Checks one tensor, and its scales when it has any, whose name is returned.
    fn check_tensor<'a>(
        &'a self,
        name: &'a str,
        tensor: &'a Tensor,
        expected: &Expected,
    ) -> Result<Option<&'a str>, Error> {
        let shape = &expected.shape;
        match (expected.kind, tensor.dtype) {
            (Kind::ExpertIds, Dtype::I64) => {
                self.check_shape(name, tensor, shape)?;
                self.expert_ids(name)?;
                Ok(None)
            }
            (Kind::Float | Kind::Quantizable, Dtype::F32 | Dtype::Bf16) => {
                self.check_shape(name, tensor, shape)?;
                Ok(None)
            }
            (Kind::Quantizable, Dtype::F8E4m3) => {
                self.check_shape(name, tensor, shape)?;
                let blocks: Vec<_> = shape.iter().map(|size| size.div_ceil(FP8_BLOCK)).collect();
                self.check_scale(name, &blocks).map(Some)
            }
            (Kind::Quantizable, Dtype::I8) => {
                let (rows, cols) = (shape[0], shape[1]);
                if !cols.is_multiple_of(FP4_BLOCK) {
                    let expected =
                        format!("FP4 with columns a multiple of {FP4_BLOCK}, not {cols}");
                    return Err(self.misshapen(name, tensor, expected));
                }
                self.check_shape(name, tensor, &[rows, cols / 2])?;
                self.check_scale(name, &[rows, cols / FP4_BLOCK]).map(Some)
            }
            (
                Kind::ExpertIds | Kind::Float | Kind::Quantizable,
                Dtype::F32
                | Dtype::Bf16
                | Dtype::F8E4m3
                | Dtype::F8E8m0
                | Dtype::I8
                | Dtype::I64
                | Dtype::Other,
            ) => Err(self.unsupported(name, tensor)),
        }
    }

    fn check_scale(&self, weight: &str, shape: &[usize]) -> Result<&str, Error> {
        let (name, scale) = self.tensor(&scale_name(weight))?;
        if scale.dtype != Dtype::F8E8m0 {
            return Err(self.unsupported(name, scale));
        }
        self.check_shape(name, scale, shape)?;
        Ok(name)
    }

    fn check_shape(&self, name: &str, tensor: &Tensor, expected: &[usize]) -> Result<(), Error> {
        if tensor.shape == expected {
            Ok(())
        } else {
            Err(self.misshapen(name, tensor, format!("{expected:?}")))
        }
    }

    fn misshapen(&self, name: &str, tensor: &Tensor, expected: String) -> Error {
        Error::Misshapen {
            file: self.table.path_of(tensor).to_owned(),
            tensor: name.to_owned(),
            actual: tensor.shape.clone(),
            expected,
        }
    }

    fn unsupported(&self, name: &str, tensor: &Tensor) -> Error {
        Error::UnsupportedDtype {
            file: self.table.path_of(tensor).to_owned(),
            tensor: name.to_owned(),
            dtype: tensor.dtype_name.clone(),
        }
    }
}

/// Whether tensor `name` belongs to a routed expert.
pub(crate) fn is_routed_expert(name: &str) -> bool {
    layout::routed_expert(name).is_some()
}

fn scale_name(weight: &str) -> String {
    format!("{}scale", weight.strip_suffix("weight").unwrap_or(weight))
}

fn read_config(dir: &Path) -> Result<ModelConfig, Error> {
    let file = dir.join("config.json");
    let text =
        fs::read_to_string(&file).map_err(|source| Error::Read { file: file.clone(), source })?;
    ModelConfig::from_json(&text).map_err(|source| Error::Config { file, source })
}
