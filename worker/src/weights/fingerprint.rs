//! By which the ranks of a group know that they hold the same checkpoint.

use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Error;
use super::table::TensorTable;

/// Bytes hashed from the start of each sampled tensor.
const SAMPLE_BYTES: usize = 256;

/// SHA-256, in hexadecimal, of what makes the checkpoint in `dir` this one and no other: `config.json`,
/// `tokenizer.json` if there is one, and name, type, shape and size of every tensor.
///
/// Contents are sampled: the first 256 bytes of every tensor outside the routed experts, and of each layer's expert
/// 0. That tells two trainings of one architecture apart, in milliseconds, without reading other ranks' experts; it
/// does not detect a flipped bit. How the tensors are cut into files does not matter.
///
/// # Errors
/// When a file cannot be read, or its header is corrupt.
pub fn fingerprint(dir: &Path) -> Result<String, Error> {
    let table = TensorTable::open(dir)?;
    let mut hash = Sha256::new();
    for name in ["config.json", "tokenizer.json"] {
        let file = dir.join(name);
        match fs::read(&file) {
            Ok(bytes) => absorb(&mut hash, name, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { file, source }),
        }
    }
    for (name, tensor) in table.iter() {
        let description =
            format!("{} {:?} {}", tensor.dtype_name, tensor.shape, tensor.num_bytes());
        absorb(&mut hash, name, description.as_bytes());
        if !name.contains(".experts.") || name.contains(".experts.0.") {
            let bytes = table.bytes(tensor);
            absorb(&mut hash, "sample", &bytes[..bytes.len().min(SAMPLE_BYTES)]);
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Hashes `name` and `value` with their lengths, so that no two inputs run into each other.
fn absorb(hash: &mut Sha256, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), value] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}
