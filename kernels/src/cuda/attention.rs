//! Attention over window and entries; see [`crate::attention`].

use super::indexer::Selection;
use super::kv_cache::{Cache, keep_window};
use super::{Address, Gpu, Launch, Memory, Step, Tensor, Variant};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Of `attend_simple`.
const SIMPLE_HEADS: usize = 8;
const SIMPLE_PIECE: usize = 32;

/// Of the kernels with tensor cores: keys of a piece, and of a segment.
const PIECE: usize = 64;
const SEGMENT: usize = 18 * PIECE;
/// Heads and threads of a block.
const WIDE: Tile = Tile { kernel: "attend_wide", heads: 64, threads: 256 };
const NARROW: Tile = Tile { kernel: "attend_narrow", heads: 16, threads: 128 };
/// With fewer blocks than this most of a GPU would stand idle.
const WIDE_BLOCKS_MIN: usize = 96;
/// Bytes of sums that wait to be merged, unless one row needs more.
const PARTIAL_BYTES_MAX: usize = 256 << 20;
/// Rows of one launch: a grid's second dimension ends there.
const ROWS_MAX: usize = 65_535;

/// A kernel with tensor cores.
#[derive(Clone, Copy, Debug)]
struct Tile {
    kernel: &'static str,
    heads: usize,
    threads: u32,
}

/// How rows are spread over blocks.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tile: Tile,
    num_segments: usize,
}

/// What attends, and to what.
#[derive(Debug)]
pub struct AttendInput<'a> {
    /// Queries, normed and rotated, `[rows, heads * head_dim]`.
    pub q: &'a Tensor,
    /// Window rows of the step's own tokens, quantised, `[rows, head_dim]`.
    pub kv: &'a Tensor,
    /// Logits that are not scaled, `[heads]`.
    pub sinks: &'a Memory<f32>,
    /// The entries that the indexer chose; `None` attends every visible one.
    pub selection: Option<&'a Selection>,
    /// No row of the step sees more entries.
    pub max_visible: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttendArgs {
    rows: Address,
    blocks: Address,
    q: Address,
    kv: Address,
    sinks: Address,
    chosen: Address,
    counts: Address,
    window: Address,
    window_scales: Address,
    entries: Address,
    entry_scales: Address,
    out: Address,
    partial: Address,
    stats: Address,
    first_row: u32,
    num_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    sliding_window: u32,
    window_rows: u32,
    ratio: u32,
    entries_per_block: u32,
    topk: u32,
    row_bytes: u32,
    scale_bytes: u32,
    num_segments: u32,
    softmax_scale: f32,
}

/// One softmax over window rows, entries and the sink, into `out` `[rows, heads * head_dim]`. Then the last rows of each
/// span go to the window rings.
///
/// # Panics
///
/// If a shape does not fit.
pub fn attend(
    gpu: &Gpu,
    step: &Step,
    input: &AttendInput<'_>,
    cache: &mut Cache,
    out: &mut Tensor,
) {
    out.shape(gpu.act(), step.num_rows(), input.q.cols());
    let args = args(step, input, cache, out);
    match gpu.variant() {
        Variant::Exact => attend_simple(gpu, step.num_rows(), args),
        Variant::Official => {
            let entries = match input.selection {
                Some(selection) => input.max_visible.min(selection.topk()),
                None => input.max_visible,
            };
            let num_keys = cache.shape.sliding_window + entries;
            let shape = [step.num_rows(), args.num_heads as usize, args.head_dim as usize];
            let plan = Plan::new(gpu, shape, num_keys);
            attend_tiles(gpu, step.num_rows(), plan, args);
        }
    }
    keep_window(gpu, step, input.kv, cache);
}

impl Tile {
    /// Dynamic shared memory: queries, a piece of keys, and their products.
    fn shared_bytes(self, head_dim: usize) -> usize {
        let stride = head_dim.next_multiple_of(16) + 8;
        (self.heads + PIECE) * stride * 2 + self.heads * (PIECE * 4 + 16)
    }
}

impl Plan {
    /// `num_keys` are those of the longest row at most. No choice changes the bits of a row.
    fn new(gpu: &Gpu, [num_rows, num_heads, dim]: [usize; 3], num_keys: usize) -> Self {
        let num_segments = num_keys.div_ceil(SEGMENT).max(1);
        let num_wide = num_rows * num_heads.div_ceil(WIDE.heads) * num_segments;
        let fits = WIDE.shared_bytes(dim) <= gpu.max_shared_bytes();
        let tile = if fits && num_wide >= WIDE_BLOCKS_MIN { WIDE } else { NARROW };
        Self { tile, num_segments }
    }
}

fn attend_tiles(gpu: &Gpu, num_rows: usize, plan: Plan, args: AttendArgs) {
    let Plan { tile, num_segments } = plan;
    let (dim, num_heads) = (args.head_dim as usize, args.num_heads as usize);
    let row_parts = if num_segments > 1 { num_segments * num_heads } else { 0 };
    let rows_per_call = PARTIAL_BYTES_MAX / (row_parts * dim * size_of::<f32>()).max(1);
    let rows_per_call = rows_per_call.clamp(1, ROWS_MAX).min(num_rows.max(1));
    let partial = gpu.allocate::<f32>(rows_per_call * row_parts * dim);
    let stats = gpu.allocate::<f32>(rows_per_call * row_parts * 2);
    for first_row in (0..num_rows).step_by(rows_per_call) {
        let args = AttendArgs {
            partial: partial.address(),
            stats: stats.address(),
            first_row: first_row as u32,
            num_segments: num_segments as u32,
            ..args
        };
        let num_rows = rows_per_call.min(num_rows - first_row) as u32;
        let launch = Launch {
            kernel: tile.kernel,
            grid: [num_heads.div_ceil(tile.heads) as u32, num_rows, num_segments as u32],
            block: tile.threads,
            shared_bytes: tile.shared_bytes(dim) as u32,
        };
        // SAFETY: rows name slots and blocks of the cache; the tensors' shapes were checked; there is scratch for all
        // segments of this call's rows.
        unsafe { gpu.launch(launch, &args) };
        if num_segments > 1 {
            let grid = [num_heads as u32, num_rows, 1];
            let merge = Launch { kernel: "attend_merge", grid, block: 128, shared_bytes: 0 };
            // SAFETY: as above.
            unsafe { gpu.launch(merge, &args) };
        }
    }
}

fn attend_simple(gpu: &Gpu, num_rows: usize, args: AttendArgs) {
    let dim = args.head_dim as usize;
    let floats = SIMPLE_PIECE * (dim | 1) + SIMPLE_HEADS * dim;
    let launch = Launch {
        kernel: "attend_simple",
        grid: [num_rows as u32, args.num_heads.div_ceil(SIMPLE_HEADS as u32), 1],
        block: 32 * SIMPLE_HEADS as u32,
        shared_bytes: (floats * size_of::<f32>()) as u32,
    };
    // SAFETY: rows name slots and blocks of the cache; the tensors' shapes were checked.
    unsafe { gpu.launch(launch, &args) };
}

fn args(step: &Step, input: &AttendInput<'_>, cache: &Cache, out: &Tensor) -> AttendArgs {
    let shape = &cache.shape;
    let (num_rows, num_heads) = (step.num_rows(), input.sinks.len());
    let widths = (num_heads * shape.head_dim, shape.head_dim);
    assert_eq!((input.q.num_rows(), input.kv.num_rows()), (num_rows, num_rows), "rows");
    assert_eq!((input.q.cols(), input.kv.cols()), widths, "widths of queries and window rows");
    if let Some(selection) = input.selection {
        assert_eq!(selection.num_rows(), num_rows, "rows of the selection");
    }
    let (chosen, counts, topk) = input.selection.map_or((0, 0, 0), Selection::parts);
    AttendArgs {
        rows: step.rows().address(),
        blocks: step.blocks().address(),
        q: input.q.act(),
        kv: input.kv.act(),
        sinks: input.sinks.address(),
        chosen,
        counts,
        window: cache.window.data.address(),
        window_scales: cache.window.scales.address(),
        entries: cache.entries.data.address(),
        entry_scales: cache.entries.scales.address(),
        out: out.act(),
        partial: 0,
        stats: 0,
        first_row: 0,
        num_heads: num_heads as u32,
        head_dim: shape.head_dim as u32,
        rotary_dim: shape.rotary_dim as u32,
        sliding_window: shape.sliding_window as u32,
        window_rows: shape.window_rows as u32,
        ratio: cache.ratio(),
        entries_per_block: shape.entries_per_block as u32,
        topk,
        row_bytes: cache.window.row_bytes,
        scale_bytes: cache.window.scale_bytes,
        num_segments: 1,
        softmax_scale: (shape.head_dim as f64).sqrt().recip() as f32,
    }
}
