//! One layer's cache on the device: window rows, compressed entries, indexer keys, and the compressors' rows that wait
//! to be pooled.
//!
//! A row of window or entries is, in exact numerics, `f32`. In official numerics it is split in two, so that 16 bytes
//! are read at a time: e4m3 codes of the channels that are not rotated, then the rotated ones as bf16; and apart from
//! them eight bytes of ue8m0 scales, one per 64 channels. Indexer keys are fp4, two channels to a byte, and apart from
//! them a scale per 32 channels. All numbers of official numerics were rounded to these formats before, so nothing is
//! lost.

use super::{Address, Gpu, Launch, Memory, Step, Tensor, Variant};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
pub(crate) mod testing;

/// Widest window row: its scales fill eight bytes, and a warp keeps sixteen numbers a lane.
const HEAD_DIM_MAX: usize = 512;
/// Channels of a scale.
const KV_BLOCK: usize = 64;
const INDEX_KEY_BLOCK: usize = 32;
/// Rows start at multiples of this.
const ROW_ALIGNMENT: usize = 16;

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// The window only.
    SlidingWindow,
    /// Also the entries that an indexer chooses, which overlap.
    Csa {
        /// Tokens of an entry.
        ratio: usize,
    },
    /// Also all entries.
    Hca {
        /// Tokens of an entry.
        ratio: usize,
    },
}

/// Sizes of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheShape {
    /// How the layer attends.
    pub kind: LayerKind,
    /// Width of a window row and of an entry.
    pub head_dim: usize,
    /// Rotated channels, the last ones.
    pub rotary_dim: usize,
    /// Width of an indexer key.
    pub index_head_dim: usize,
    /// Tokens that a query sees in the window.
    pub sliding_window: usize,
    /// Rows of each sequence's window ring.
    pub window_rows: usize,
    /// Rows of each sequence's compressor ring, 0 without compressor.
    pub tail_rows: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Entries of a block, 0 without compressor.
    pub entries_per_block: usize,
    /// Slots for sequences.
    pub num_slots: usize,
}

/// One layer's cache.
#[derive(Debug)]
pub struct Cache {
    pub(crate) shape: CacheShape,
    /// `[slots * window_rows]` rows
    pub(crate) window: Rows,
    /// `[blocks * entries_per_block]` rows
    pub(crate) entries: Rows,
    /// `[blocks * entries_per_block]` rows
    pub(crate) index_keys: Rows,
    pub(crate) tail: Tail,
    pub(crate) index_tail: Tail,
}

/// Rows in the variant's format.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) data: Memory<u8>,
    pub(crate) scales: Memory<u8>,
    pub(crate) row_bytes: u32,
    pub(crate) scale_bytes: u32,
}

/// Rings of compressor rows, `[slots, tail_rows, width]`; scores have their position's bias.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) kv: Memory<f32>,
    pub(crate) score: Memory<f32>,
    pub(crate) width: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KeepWindowArgs {
    rows: Address,
    kv: Address,
    data: Address,
    scales: Address,
    num_rows: u32,
    dim: u32,
    rotary_dim: u32,
    window_rows: u32,
    row_bytes: u32,
    scale_bytes: u32,
}

// === impl LayerKind ===

impl LayerKind {
    /// Tokens of an entry, if there are entries.
    #[must_use]
    pub fn ratio(self) -> Option<usize> {
        match self {
            Self::SlidingWindow => None,
            Self::Csa { ratio } | Self::Hca { ratio } => Some(ratio),
        }
    }
}

// === impl CacheShape ===

impl CacheShape {
    fn num_entries(&self) -> usize {
        if self.kind == LayerKind::SlidingWindow {
            0
        } else {
            self.num_blocks * self.entries_per_block
        }
    }

    /// How many times as wide as an entry the main compressor's rows are, and the indexer's.
    fn halves(&self) -> (usize, usize) {
        match self.kind {
            LayerKind::SlidingWindow => (0, 0),
            LayerKind::Hca { .. } => (1, 0),
            LayerKind::Csa { .. } => (2, 2),
        }
    }
}

// === impl Rows ===

impl Rows {
    fn new(gpu: &Gpu, num_rows: usize, (row_bytes, scale_bytes): (usize, usize)) -> Self {
        Self {
            data: gpu.zeros(num_rows * row_bytes),
            scales: gpu.zeros(num_rows * scale_bytes),
            row_bytes: row_bytes as u32,
            scale_bytes: scale_bytes as u32,
        }
    }

    fn num_bytes(&self) -> usize {
        self.data.len() + self.scales.len()
    }

    fn fill(&mut self, codes: &Memory<u8>, scales: &Memory<u8>) {
        for (to, from) in [(&mut self.data, codes), (&mut self.scales, scales)] {
            let (len, period) = (to.len(), from.len());
            for first in (0..len).step_by(period.max(1)) {
                to.copy_from(first, from, 0, period.min(len - first));
            }
        }
    }
}

/// Bytes of a window row or entry, and of its scales.
fn row_bytes(variant: Variant, dim: usize, rotary_dim: usize) -> (usize, usize) {
    match variant {
        Variant::Exact => ((dim * size_of::<f32>()).next_multiple_of(ROW_ALIGNMENT), 0),
        Variant::Official => {
            let codes = (dim - rotary_dim).next_multiple_of(ROW_ALIGNMENT);
            let rotated = (rotary_dim * 2).next_multiple_of(ROW_ALIGNMENT);
            (codes + rotated, HEAD_DIM_MAX / KV_BLOCK)
        }
    }
}

/// Bytes of an indexer key, and of its scales.
fn key_bytes(variant: Variant, dim: usize) -> (usize, usize) {
    match variant {
        Variant::Exact => row_bytes(variant, dim, 0),
        Variant::Official => (
            dim.div_ceil(2).next_multiple_of(ROW_ALIGNMENT),
            dim.div_ceil(INDEX_KEY_BLOCK).next_multiple_of(4),
        ),
    }
}

/// Bytes of a window row or entry with its scales.
#[must_use]
pub fn entry_num_bytes(variant: Variant, dim: usize, rotary_dim: usize) -> usize {
    let (row, scales) = row_bytes(variant, dim, rotary_dim);
    row + scales
}

/// Bytes of an indexer key with its scales.
#[must_use]
pub fn key_num_bytes(variant: Variant, dim: usize) -> usize {
    let (row, scales) = key_bytes(variant, dim);
    row + scales
}

// === impl Tail ===

impl Tail {
    fn new(gpu: &Gpu, shape: &CacheShape, width: usize) -> Self {
        let len = shape.num_slots * shape.tail_rows * width;
        Self { kv: gpu.zeros(len), score: gpu.zeros(len), width }
    }
}

// === impl Cache ===

impl Cache {
    /// An empty cache.
    ///
    /// # Panics
    ///
    /// If rows are wider than 512 channels, or have more rotated channels than channels.
    #[must_use]
    pub fn new(gpu: &Gpu, shape: &CacheShape) -> Self {
        let CacheShape { head_dim, rotary_dim, .. } = *shape;
        assert!(head_dim <= HEAD_DIM_MAX, "rows of {head_dim} channels");
        assert!(rotary_dim <= head_dim, "{rotary_dim} rotated channels of {head_dim}");
        let variant = gpu.variant();
        let row = row_bytes(variant, head_dim, rotary_dim);
        let num_keys = match shape.kind {
            LayerKind::Csa { .. } => shape.num_entries(),
            LayerKind::SlidingWindow | LayerKind::Hca { .. } => 0,
        };
        let (halves, index_halves) = shape.halves();
        Self {
            shape: *shape,
            window: Rows::new(gpu, shape.num_slots * shape.window_rows, row),
            entries: Rows::new(gpu, shape.num_entries(), row),
            index_keys: Rows::new(gpu, num_keys, key_bytes(variant, shape.index_head_dim)),
            tail: Tail::new(gpu, shape, halves * head_dim),
            index_tail: Tail::new(gpu, shape, index_halves * shape.index_head_dim),
        }
    }

    /// Fills window, entries and keys with copies of `codes` and `scales`, which mean nothing: for measurements of a
    /// cache that nothing was computed for.
    pub fn fill(&mut self, codes: &Memory<u8>, scales: &Memory<u8>) {
        for rows in [&mut self.window, &mut self.entries, &mut self.index_keys] {
            rows.fill(codes, scales);
        }
    }

    /// Bytes on the device.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let rows = [&self.window, &self.entries, &self.index_keys];
        let tails = [&self.tail, &self.index_tail];
        let tail_bytes = |tail: &&Tail| (tail.kv.len() + tail.score.len()) * size_of::<f32>();
        rows.map(Rows::num_bytes).iter().sum::<usize>()
            + tails.iter().map(tail_bytes).sum::<usize>()
    }

    /// Tokens of an entry; a number that no position reaches where there are none.
    pub(crate) fn ratio(&self) -> u32 {
        self.shape.kind.ratio().map_or(u32::MAX, |ratio| ratio as u32)
    }
}

/// Puts the last rows of each span of `kv` `[rows, head_dim]` into the window rings.
pub(crate) fn keep_window(gpu: &Gpu, step: &Step, kv: &Tensor, cache: &mut Cache) {
    let args = KeepWindowArgs {
        rows: step.rows().address(),
        kv: kv.act(),
        data: cache.window.data.address(),
        scales: cache.window.scales.address(),
        num_rows: step.num_rows() as u32,
        dim: cache.shape.head_dim as u32,
        rotary_dim: cache.shape.rotary_dim as u32,
        window_rows: cache.shape.window_rows as u32,
        row_bytes: cache.window.row_bytes,
        scale_bytes: cache.window.scale_bytes,
    };
    let launch = Launch {
        kernel: "keep_window",
        grid: [step.num_rows() as u32, 1, 1],
        block: 256,
        shared_bytes: args.dim * size_of::<f32>() as u32,
    };
    // SAFETY: rows name slots of this cache, and `kv` has one row for each of them.
    unsafe { gpu.launch(launch, &args) };
}
