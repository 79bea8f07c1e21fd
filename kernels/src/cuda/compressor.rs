//! Pooling of finished entries; see [`crate::compressor`].

use super::kv_cache::{Cache, LayerKind};
use super::{Address, Gpu, Launch, Memory, Step, Tensor};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Most threads that work on one entry.
const NUM_THREADS_MAX: usize = 512;

/// Which of a CSA layer's two compressors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Entries that are attended.
    Main,
    /// The indexer's keys.
    IndexKeys,
}

/// Rows that finish entries.
#[derive(Debug)]
pub struct CompressInput<'a> {
    /// Which compressor.
    pub entries: Entries,
    /// `f32` `[rows, width]`; the width is that of an entry, on CSA layers twice that.
    pub kv: &'a Tensor,
    /// `f32` `[rows, width]`, without `ape`.
    pub score: &'a Tensor,
    /// `[ratio, width]`
    pub ape: &'a Memory<f32>,
    /// `[entry]`
    pub norm: &'a Memory<f32>,
    /// Added to the mean square.
    pub norm_eps: f32,
    /// Radians per position of each rotated pair, `[rotary_dim / 2]`.
    pub inv_freq: &'a Memory<f32>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CompressArgs {
    rows: Address,
    blocks: Address,
    kv: Address,
    score: Address,
    ape: Address,
    norm: Address,
    inv_freq: Address,
    tail_kv: Address,
    tail_score: Address,
    data: Address,
    scales: Address,
    num_rows: u32,
    width: u32,
    dim: u32,
    rotary_dim: u32,
    ratio: u32,
    overlaps: u32,
    tail_rows: u32,
    entries_per_block: u32,
    row_bytes: u32,
    scale_bytes: u32,
    is_index_key: u32,
    eps: f32,
}

/// Pools the entries that the step's rows finish, norms, rotates and quantises them, stores them in `cache`, and keeps
/// the rows that later entries need.
///
/// # Panics
///
/// If a shape does not fit, or the layer has no such entries.
pub fn compress(gpu: &Gpu, step: &Step, input: &CompressInput<'_>, cache: &mut Cache) {
    let args = args(step, input, cache);
    let num_rows = step.num_rows() as u32;
    let threads = (args.dim as usize).next_multiple_of(32).min(NUM_THREADS_MAX);
    let pool = Launch {
        kernel: "compress",
        grid: [num_rows, 1, 1],
        block: threads as u32,
        shared_bytes: args.dim * size_of::<f32>() as u32,
    };
    // SAFETY: rows name slots and blocks of this cache; the tensors' shapes were checked.
    unsafe { gpu.launch(pool, &args) };
    let keep = Launch { kernel: "keep_tail", grid: [num_rows, 1, 1], block: 256, shared_bytes: 0 };
    // SAFETY: as above.
    unsafe { gpu.launch(keep, &args) };
}

fn args(step: &Step, input: &CompressInput<'_>, cache: &Cache) -> CompressArgs {
    let shape = &cache.shape;
    let (overlaps, ratio) = match shape.kind {
        LayerKind::SlidingWindow => (false, 0),
        LayerKind::Csa { ratio } => (true, ratio),
        LayerKind::Hca { ratio } => (false, ratio),
    };
    assert!(ratio > 0, "a layer without compressor");
    let (to, tail, dim) = match input.entries {
        Entries::Main => (&cache.entries, &cache.tail, shape.head_dim),
        Entries::IndexKeys => (&cache.index_keys, &cache.index_tail, shape.index_head_dim),
    };
    let rows = (step.num_rows(), tail.width);
    assert_eq!((input.kv.num_rows(), input.kv.cols()), rows, "shape of kv");
    assert_eq!((input.score.num_rows(), input.score.cols()), rows, "shape of the scores");
    assert_eq!(input.ape.len(), ratio * tail.width, "length of ape");
    assert_eq!(input.norm.len(), dim, "length of the norm");
    assert_eq!(input.inv_freq.len() * 2, shape.rotary_dim, "rotated channels");
    CompressArgs {
        rows: step.rows().address(),
        blocks: step.blocks().address(),
        kv: input.kv.f32(),
        score: input.score.f32(),
        ape: input.ape.address(),
        norm: input.norm.address(),
        inv_freq: input.inv_freq.address(),
        tail_kv: tail.kv.address(),
        tail_score: tail.score.address(),
        data: to.data.address(),
        scales: to.scales.address(),
        num_rows: step.num_rows() as u32,
        width: tail.width as u32,
        dim: dim as u32,
        rotary_dim: shape.rotary_dim as u32,
        ratio: ratio as u32,
        overlaps: u32::from(overlaps),
        tail_rows: shape.tail_rows as u32,
        entries_per_block: shape.entries_per_block as u32,
        row_bytes: to.row_bytes,
        scale_bytes: to.scale_bytes,
        is_index_key: u32::from(input.entries == Entries::IndexKeys),
        eps: input.norm_eps,
    }
}
