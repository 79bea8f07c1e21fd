use super::*;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// A tensor of a golden file as f32.
pub(crate) fn golden(path: &Path, key: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(key).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    tensor.data().as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

pub(crate) fn golden_ids(path: &Path) -> Vec<u32> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("ids").unwrap();
    tensor.data().as_chunks().0.iter().map(|chunk| i64::from_le_bytes(*chunk) as u32).collect()
}

pub(crate) fn micro() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/micro")
}

/// A bigger set of goldens, which is not in the repository.
pub(crate) fn tiny_b() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/tiny-b");
    dir.is_dir().then_some(dir)
}

fn options(num_workers: usize) -> Options {
    Options {
        device: Device::Cpu,
        numerics: Numerics::Exact,
        num_workers: NonZeroUsize::new(num_workers).unwrap(),
        num_threads: NonZeroUsize::MIN,
        owner: EpRank(0),
        prefill_chunk: None,
        decode_from: None,
    }
}

/// Every way to cut `len` tokens that we try: whole, in chunks of 7, one by one, and decode after a prompt.
fn cuts(len: usize) -> Vec<Options> {
    let chunked = |k| Options { prefill_chunk: NonZeroUsize::new(k), ..options(1) };
    let decoding = |p| Options { decode_from: Some(p), ..chunked(5) };
    vec![options(1), chunked(7), chunked(1), decoding(len / 2), chunked(33)]
}

/// Runs every cut and group size, expects one set of bits, and that it is close to the golden.
fn check(model: &Path, file: &Path, keys: &[&str], tolerance: f32) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let vocab_size = checkpoint.config().vocab_size;
    let ids = golden_ids(file);
    let ours = logits(&checkpoint, &ids, &options(1)).unwrap();
    assert_eq!(ours.len(), ids.len() * vocab_size);
    for key in keys {
        let comparison = compare(&ours, &golden(file, key), vocab_size);
        println!("{} {key}: {comparison:?} {}", file.display(), fingerprint(&ours));
        assert!(comparison.max_abs <= tolerance, "{} {key}: {comparison:?}", file.display());
        assert_eq!(comparison.num_argmax_equal, comparison.num_rows, "{key}");
    }
    for cut in cuts(ids.len()) {
        let cut_logits = logits(&checkpoint, &ids, &cut).unwrap();
        assert_eq!(fingerprint(&cut_logits), fingerprint(&ours), "{cut:?}");
    }
    let threads = Options { num_threads: NonZeroUsize::new(3).unwrap(), ..options(1) };
    let thread_logits = logits(&checkpoint, &ids, &threads).unwrap();
    assert_eq!(fingerprint(&thread_logits), fingerprint(&ours), "three threads");
    for num_workers in 2..=4 {
        let owner = EpRank(num_workers as u32 - 1);
        let group = Options { prefill_chunk: NonZeroUsize::new(16), owner, ..options(num_workers) };
        let group_logits = logits(&checkpoint, &ids, &group).unwrap();
        assert_eq!(fingerprint(&group_logits), fingerprint(&ours), "{num_workers} workers");
    }
}

#[test]
fn exact_logits_of_micro_are_the_reference_s() {
    for name in ["short", "window"] {
        let file = micro().join(format!("golden/{name}.safetensors"));
        check(&micro().join("q"), &file, &["q.exact.prefill_logits"], 2e-5);
    }
}

#[test]
fn exact_logits_of_tiny_b_are_the_reference_s() {
    let Some(dir) = tiny_b() else { return };
    for name in ["short", "window", "long"] {
        let file = dir.join(format!("golden/{name}.safetensors"));
        check(&dir.join("q"), &file, &["q.exact.prefill_logits"], 2e-4);
        check(&dir.join("bf16"), &file, &["hf.prefill_logits", "hf.decode_logits"], 2e-4);
    }
}

#[test]
fn official_bits_do_not_depend_on_the_cut_either() {
    let checkpoint = Checkpoint::open(&micro().join("q")).unwrap();
    let ids = golden_ids(&micro().join("golden/window.safetensors"));
    let official = |options: Options| {
        let options = Options { numerics: Numerics::Official, ..options };
        fingerprint(&logits(&checkpoint, &ids, &options).unwrap())
    };
    let whole = official(options(1));
    for cut in cuts(ids.len()).into_iter().chain([options(2), options(3)]) {
        assert_eq!(official(cut.clone()), whole, "{cut:?}");
    }
}

#[test]
fn an_owner_outside_the_group_is_refused() {
    let checkpoint = Checkpoint::open(&micro().join("q")).unwrap();
    let outside = Options { owner: EpRank(2), ..options(2) };
    let error = logits(&checkpoint, &[0], &outside).unwrap_err();
    assert_eq!(error.to_string(), "rank 2 is not one of 2 workers");
    let error = logits(&checkpoint, &[], &options(1)).unwrap_err();
    assert!(matches!(error, Error::Empty), "{error}");
}

#[test]
fn a_difference_is_found_wherever_it_is() {
    let golden = [0.0, 1.0, 2.0, 0.5];
    let ours = [9.0, 9.0, 0.0, 1.0, 2.5, 3.0];
    let comparison = compare(&ours, &golden, 2);
    assert_eq!((comparison.num_rows, comparison.max_abs), (2, 2.5));
    assert_eq!(comparison.num_argmax_equal, 1);
    assert!(compare(&[f32::NAN, 0.0], &[0.0, 0.0], 2).max_abs.is_nan());
}
