//! One layer's cache in memory that is touched when it is first used.

use half::bf16;
use half::vec::HalfBitsVecExt;
use switchyard_kernels::attention::KeyRows;
use switchyard_moe::capacity::{entries_per_block, first_entry_of_block};
use switchyard_moe::config::{AttentionKind, BLOCK_SIZE};

use crate::backend::{Entries, Numerics};
use crate::kv_cache::{LayerLayout, Span};

/// One layer's cache.
#[derive(Debug)]
pub struct CpuCache {
    pub(super) layout: LayerLayout,
    pub(super) numbers: Numbers,
    /// Rows of the main compressor.
    pub(super) tail: Tail,
    /// Rows of the indexer's compressor.
    pub(super) index_tail: Tail,
}

/// Window rows, entries and indexer keys, in the numerics' format.
#[derive(Debug)]
pub(super) enum Numbers {
    F32(Pools<f32>),
    Bf16(Pools<bf16>),
}

#[derive(Debug)]
pub(super) struct Pools<T> {
    /// `[slots, window_rows, head_dim]`
    pub(super) window: Vec<T>,
    /// `[blocks * entries_per_block, head_dim]`
    pub(super) entries: Vec<T>,
    /// `[blocks * entries_per_block, index_head_dim]`
    pub(super) index_keys: Vec<T>,
}

/// Rings of compressor rows, `[slots, tail_rows, width]`, always `f32`.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) kv: Vec<f32>,
    pub(super) score: Vec<f32>,
    pub(super) width: usize,
}

/// A number of the cache.
pub(super) trait Cell: Copy + Send + Sync + 'static {
    fn zeroed(len: usize) -> Vec<Self>;
    fn narrow(x: f32) -> Self;
    fn keys<'a>(rows: &'a [&'a [Self]]) -> KeyRows<'a>;
}

impl Cell for f32 {
    fn zeroed(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn narrow(x: f32) -> Self {
        x
    }

    fn keys<'a>(rows: &'a [&'a [Self]]) -> KeyRows<'a> {
        KeyRows::F32(rows)
    }
}

impl Cell for bf16 {
    fn zeroed(len: usize) -> Vec<Self> {
        // Integers, because only for them does the allocator hand out untouched pages.
        vec![0_u16; len].reinterpret_into()
    }

    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }

    fn keys<'a>(rows: &'a [&'a [Self]]) -> KeyRows<'a> {
        KeyRows::Bf16(rows)
    }
}

// === impl CpuCache ===

impl CpuCache {
    pub(super) fn new(layout: &LayerLayout, numerics: Numerics) -> Self {
        let layout = *layout;
        let halves = match layout.kind {
            AttentionKind::SlidingWindow => 0,
            AttentionKind::Hca { .. } => 1,
            AttentionKind::Csa { .. } => 2,
        };
        let index_halves = if halves == 2 { 2 } else { 0 };
        Self {
            layout,
            numbers: match numerics {
                Numerics::Exact => Numbers::F32(Pools::new(&layout)),
                Numerics::Official => Numbers::Bf16(Pools::new(&layout)),
            },
            tail: Tail::new(&layout, halves * layout.head_dim),
            index_tail: Tail::new(&layout, index_halves * layout.index_head_dim),
        }
    }

    /// Tokens per entry; layers without compressor have no entries to ask for.
    pub(super) fn ratio(&self) -> usize {
        self.layout.kind.ratio().unwrap_or(usize::MAX)
    }

    pub(super) fn tail(&self, entries: Entries) -> &Tail {
        match entries {
            Entries::Main => &self.tail,
            Entries::IndexKeys => &self.index_tail,
        }
    }

    pub(super) fn tail_mut(&mut self, entries: Entries) -> &mut Tail {
        match entries {
            Entries::Main => &mut self.tail,
            Entries::IndexKeys => &mut self.index_tail,
        }
    }

    /// Stores a finished entry.
    pub(super) fn put_entry(&mut self, entries: Entries, cell: usize, row: &[f32]) {
        match &mut self.numbers {
            Numbers::F32(pools) => write_row(pools.entries_mut(entries), cell, row),
            Numbers::Bf16(pools) => write_row(pools.entries_mut(entries), cell, row),
        }
    }
}

/// Cell of entry `entry` of the sequence with block table `span.blocks`.
pub(super) fn entry_cell(span: &Span<'_>, ratio: usize, entry: usize) -> usize {
    let block = entry * ratio / BLOCK_SIZE;
    let within = entry - first_entry_of_block(block, ratio);
    span.blocks[block].0 as usize * entries_per_block(ratio) + within
}

/// Writes row `row` of a matrix.
pub(super) fn write_row<T: Cell>(rows: &mut [T], row: usize, from: &[f32]) {
    let to = &mut rows[row * from.len()..(row + 1) * from.len()];
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::narrow(from);
    }
}

/// Row `row` of a matrix of `cols` columns.
pub(super) fn read_row<T>(rows: &[T], row: usize, cols: usize) -> &[T] {
    &rows[row * cols..(row + 1) * cols]
}

// === impl Pools ===

impl<T: Cell> Pools<T> {
    fn new(layout: &LayerLayout) -> Self {
        let num_entries = match layout.kind.ratio() {
            Some(ratio) => layout.num_blocks * entries_per_block(ratio),
            None => 0,
        };
        let num_keys = match layout.kind {
            AttentionKind::Csa { .. } => num_entries,
            AttentionKind::SlidingWindow | AttentionKind::Hca { .. } => 0,
        };
        Self {
            window: T::zeroed(layout.num_slots * layout.window_rows * layout.head_dim),
            entries: T::zeroed(num_entries * layout.head_dim),
            index_keys: T::zeroed(num_keys * layout.index_head_dim),
        }
    }

    fn entries_mut(&mut self, entries: Entries) -> &mut [T] {
        match entries {
            Entries::Main => &mut self.entries,
            Entries::IndexKeys => &mut self.index_keys,
        }
    }
}

// === impl Tail ===

impl Tail {
    fn new(layout: &LayerLayout, width: usize) -> Self {
        let len = layout.num_slots * layout.tail_rows * width;
        Self { kv: vec![0.0; len], score: vec![0.0; len], width }
    }
}
