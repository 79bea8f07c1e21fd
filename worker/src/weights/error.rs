use std::io;
use std::path::PathBuf;

use switchyard_moe::config;

/// Why a checkpoint is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there or not readable.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `config.json` is refused.
    #[error("{} does not describe a model that can be served", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// Which values are wrong.
        #[source]
        source: config::Error,
    },
    /// No tensors at all.
    #[error("{} holds no model*.safetensors; is it a checkpoint folder?", dir.display())]
    NoShards {
        /// The folder.
        dir: PathBuf,
    },
    /// The index is not what `model.safetensors.index.json` should be.
    #[error("{} is corrupt: {detail}", file.display())]
    Index {
        /// The index file.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The index names a file that does not exist, or that lacks the tensor.
    #[error("{} places tensor {tensor} in {shard}, which {problem}", file.display())]
    IndexEntry {
        /// The index file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
        /// Why that is wrong.
        problem: &'static str,
    },
    /// A safetensors header cannot be parsed.
    #[error("{} has a corrupt header: {detail}", file.display())]
    Header {
        /// The shard.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A tensor's entry in a header is impossible.
    #[error("{}: the entry of tensor {tensor} is corrupt: {detail}", file.display())]
    Entry {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        detail: String,
    },
    /// The file ends before a tensor's data.
    #[error(
        "{} is truncated: tensor {tensor} ends at byte {end}, the file at {num_bytes}; copy it again",
        file.display()
    )]
    Truncated {
        /// The shard.
        file: PathBuf,
        /// The first tensor that is cut.
        tensor: String,
        /// Where the tensor's data should end.
        end: u64,
        /// Size of the file.
        num_bytes: u64,
    },
    /// The same tensor occurs twice.
    #[error("tensor {tensor} is in {} and again in {}", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One place.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor of the model is not there.
    #[error("tensor {tensor} is missing from the checkpoint in {}", dir.display())]
    Missing {
        /// The checkpoint.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the model does not have.
    #[error("{}: tensor {tensor} does not belong to the model that config.json describes", file.display())]
    Unexpected {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor's shape contradicts `config.json`.
    #[error("{}: tensor {tensor} has shape {actual:?}, config.json asks for {expected}", file.display())]
    Misshapen {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// As stored.
        actual: Vec<usize>,
        /// As derived from the configuration.
        expected: String,
    },
    /// A tensor is stored in a type that is not computed with in its place.
    #[error("{}: tensor {tensor} has dtype {dtype}, which is not supported there", file.display())]
    UnsupportedDtype {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// As stored.
        dtype: String,
    },
    /// A hash layer routes a token to an expert that the model does not have.
    #[error(
        "{}: tensor {tensor} names expert {id} at element {index}, but the model has {num_experts} experts",
        file.display()
    )]
    ExpertId {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Element index.
        index: usize,
        /// The id.
        id: i64,
        /// Experts of the model.
        num_experts: usize,
    },
    /// A scale that is not a number, or so large that products overflow.
    #[error(
        "{}: scale {index} of tensor {tensor} has E8M0 code {code}; codes up to 246 are supported",
        file.display()
    )]
    Scale {
        /// The shard.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Element index.
        index: usize,
        /// The code.
        code: u8,
    },
}
