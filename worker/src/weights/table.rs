//! The tensors of all shards by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use switchyard_kernels::mmap::Mmap;

use super::Error;
use super::layout::is_ignored;

/// Bytes of the largest header that is parsed; a Pro checkpoint's shards stay below 1 MB.
const HEADER_BYTES_MAX: u64 = 100 << 20;

const INDEX_FILE: &str = "model.safetensors.index.json";

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// FP8 with 4 exponent bits.
    F8E4m3,
    /// A power-of-two scale.
    F8E8m0,
    /// Two FP4 codes per byte.
    I8,
    /// Expert ids.
    I64,
    /// Any other; allowed in tensors that are not used.
    Other,
}

/// Where one tensor lies.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) dtype_name: String,
    pub(super) shape: Vec<usize>,
    shard: usize,
    /// Byte range in the shard's file; within the file.
    start: usize,
    end: usize,
}

/// The tensors of a checkpoint.
#[derive(Debug)]
pub(super) struct TensorTable {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    data: Mmap,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in file order; a duplicate name is an error, which a map would hide.
struct Header(Vec<(String, HeaderEntry)>);

// === impl Tensor ===

impl Tensor {
    pub(super) fn num_bytes(&self) -> usize {
        self.end - self.start
    }
}

// === impl Dtype ===

impl Dtype {
    fn parse(name: &str) -> Self {
        match name {
            "F32" => Self::F32,
            "BF16" => Self::Bf16,
            "F8_E4M3" => Self::F8E4m3,
            "F8_E8M0" => Self::F8E8m0,
            "I8" => Self::I8,
            "I64" => Self::I64,
            _ => Self::Other,
        }
    }

    /// Bytes of one element, `None` when unknown.
    fn num_bytes(self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::Bf16 => Some(2),
            Self::F8E4m3 | Self::F8E8m0 | Self::I8 => Some(1),
            Self::I64 => Some(8),
            Self::Other => None,
        }
    }
}

// === impl TensorTable ===

impl TensorTable {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let index_path = dir.join(INDEX_FILE);
        let index = if index_path.exists() { Some(read_index(&index_path)?) } else { None };
        let names = match &index {
            Some(index) => shard_names_of_index(dir, &index_path, index)?,
            None => shard_names_in(dir)?,
        };
        if names.is_empty() {
            return Err(Error::NoShards { dir: dir.to_owned() });
        }
        let mut table = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            table.add_shard(dir.join(name))?;
        }
        if let Some(index) = index {
            table.check_index(&index_path, &index)?;
        }
        Ok(table)
    }

    pub(super) fn get(&self, name: &str) -> Option<(&str, &Tensor)> {
        self.tensors.get_key_value(name).map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.shards[tensor.shard].data[tensor.start..tensor.end]
    }

    pub(super) fn path_of(&self, tensor: &Tensor) -> &Path {
        &self.shards[tensor.shard].path
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<(), Error> {
        let data =
            Mmap::open(&path).map_err(|source| Error::Read { file: path.clone(), source })?;
        let (header, data_start) = parse_header(&path, &data)?;
        let shard = self.shards.len();
        let mut ranges = Vec::with_capacity(header.0.len());
        for (name, entry) in header.0 {
            let tensor = locate(&path, &name, entry, (shard, data_start, data.len()))?;
            ranges.push((tensor.start, tensor.end, name.clone()));
            if let Some(first) = self.tensors.get(&name) {
                let first = self.shards.get(first.shard).map_or(&path, |shard| &shard.path).clone();
                return Err(Error::Duplicate { tensor: name, first, second: path });
            }
            self.tensors.insert(name, tensor);
        }
        check_coverage(&path, ranges, data_start, data.len())?;
        self.shards.push(Shard { path, data });
        Ok(())
    }

    fn check_index(&self, index_path: &Path, index: &Index) -> Result<(), Error> {
        for (tensor, shard) in &index.weight_map {
            let found = self.get(tensor).map(|(_, tensor)| self.path_of(tensor));
            if found.and_then(Path::file_name) != Some(shard.as_ref()) {
                return Err(Error::IndexEntry {
                    file: index_path.to_owned(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                    problem: "does not hold it",
                });
            }
        }
        Ok(())
    }
}

fn read_index(path: &Path) -> Result<Index, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Read { file: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Index { file: path.to_owned(), detail: error.to_string() })
}

fn shard_names_of_index(
    dir: &Path,
    index_path: &Path,
    index: &Index,
) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for (tensor, shard) in &index.weight_map {
        let problem = if Path::new(shard).file_name() != Some(shard.as_ref()) {
            "is not a plain file name"
        } else if !names.contains(shard) && !dir.join(shard).is_file() {
            "does not exist"
        } else {
            names.insert(shard.clone());
            continue;
        };
        return Err(Error::IndexEntry {
            file: index_path.to_owned(),
            tensor: tensor.clone(),
            shard: shard.clone(),
            problem,
        });
    }
    Ok(names)
}

fn shard_names_in(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let read_error = |source| Error::Read { file: dir.to_owned(), source };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(read_error)? {
        let name = entry.map_err(read_error)?.file_name();
        if let Some(name) = name.to_str()
            && name.starts_with("model")
            && name.ends_with(".safetensors")
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

/// Parses the header: 8 bytes of length, then JSON. Returns it with the offset of the data.
fn parse_header(path: &Path, file: &[u8]) -> Result<(Header, usize), Error> {
    let corrupt = |detail: String| Error::Header { file: path.to_owned(), detail };
    let Some((length, rest)) = file.split_first_chunk() else {
        return Err(corrupt(format!("the file has {} bytes, a header needs 8", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX || length > rest.len() as u64 {
        return Err(corrupt(format!(
            "its length is given as {length} bytes, the rest of the file has {}",
            rest.len()
        )));
    }
    let length = length as usize;
    let header =
        serde_json::from_slice(&rest[..length]).map_err(|error| corrupt(error.to_string()))?;
    Ok((header, 8 + length))
}

/// Checks one entry against the file; `(shard, data_start, file_len)` place it.
fn locate(
    path: &Path,
    name: &str,
    entry: HeaderEntry,
    (shard, data_start, file_len): (usize, usize, usize),
) -> Result<Tensor, Error> {
    let corrupt =
        |detail: String| Error::Entry { file: path.to_owned(), tensor: name.to_owned(), detail };
    let [start, end] = entry.data_offsets;
    let Some(num_bytes) = end.checked_sub(start) else {
        return Err(corrupt(format!("its data end at {end}, before they start at {start}")));
    };
    let dtype = Dtype::parse(&entry.dtype);
    match dtype.num_bytes() {
        Some(element) => {
            let expected = entry.shape.iter().try_fold(element, |n, &size| n.checked_mul(size));
            if expected != Some(num_bytes) {
                return Err(corrupt(format!(
                    "{} of shape {:?} in {num_bytes} bytes",
                    entry.dtype, entry.shape
                )));
            }
        }
        None if is_ignored(name) => {}
        None => {
            return Err(Error::UnsupportedDtype {
                file: path.to_owned(),
                tensor: name.to_owned(),
                dtype: entry.dtype,
            });
        }
    }
    match data_start.checked_add(end) {
        Some(file_end) if file_end <= file_len => Ok(Tensor {
            dtype,
            dtype_name: entry.dtype,
            shape: entry.shape,
            shard,
            start: data_start + start,
            end: file_end,
        }),
        file_end => Err(Error::Truncated {
            file: path.to_owned(),
            tensor: name.to_owned(),
            end: file_end.map_or(u64::MAX, |end| end as u64),
            num_bytes: file_len as u64,
        }),
    }
}

/// The tensors of a file lie one after the other without gap or overlap, and fill it.
fn check_coverage(
    path: &Path,
    mut ranges: Vec<(usize, usize, String)>,
    data_start: usize,
    file_len: usize,
) -> Result<(), Error> {
    ranges.sort_unstable();
    let mut expected = data_start;
    for (start, end, name) in ranges {
        if start != expected {
            return Err(Error::Entry {
                file: path.to_owned(),
                tensor: name,
                detail: format!("its data start at byte {start} of the file instead of {expected}"),
            });
        }
        expected = end;
    }
    if expected != file_len {
        let extra = file_len - expected;
        let detail = format!("{extra} bytes at the end of the file belong to no tensor");
        return Err(Error::Header { file: path.to_owned(), detail });
    }
    Ok(())
}

// === impl Header ===

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
