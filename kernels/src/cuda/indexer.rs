//! The lightning indexer's choice; see [`crate::indexer`].

use super::kv_cache::{Cache, LayerKind};
use super::{Address, Gpu, Launch, Memory, Step, Tensor, Variant};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Bytes of scores that exist at a time, unless one row needs more.
const SCORE_BYTES_MAX: usize = 256 << 20;
/// Rows of one launch: a grid's second dimension ends there.
const ROWS_MAX: usize = 65_535;
/// Entries of a block of `index_scores`.
const TILE: usize = 128;
/// Entries of a block of `index_scores_tiles`, and what it can compute.
const STRETCH: usize = 1024;
const STRETCH_DIM: usize = 128;
const STRETCH_HEADS_MAX: usize = 64;

/// The entries that each row chose, rising.
#[derive(Debug)]
pub struct Selection {
    /// `[rows, topk]`
    chosen: Memory<u32>,
    /// `[rows]`
    counts: Memory<u32>,
    /// Scratch, `[some rows, visible]`.
    scores: Memory<f32>,
    num_rows: usize,
    topk: usize,
}

/// What chooses.
#[derive(Debug)]
pub struct SelectInput<'a> {
    /// Indexer queries, rotated and quantised, `[rows, heads * index_head_dim]`.
    pub q: &'a Tensor,
    /// Head weights, not scaled, `[rows, heads]`.
    pub weights: &'a Tensor,
    /// Heads.
    pub num_heads: usize,
    /// Most entries of a row.
    pub topk: usize,
    /// No row of the step sees more entries.
    pub max_visible: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct IndexArgs {
    rows: Address,
    blocks: Address,
    q: Address,
    weights: Address,
    keys: Address,
    scales: Address,
    scores: Address,
    chosen: Address,
    counts: Address,
    first_row: u32,
    num_heads: u32,
    dim: u32,
    ratio: u32,
    entries_per_block: u32,
    row_bytes: u32,
    scale_bytes: u32,
    max_visible: u32,
    topk: u32,
    scale: f32,
}

// === impl Selection ===

impl Selection {
    /// No choice yet.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let (chosen, counts, scores) = (gpu.zeros(0), gpu.zeros(0), gpu.zeros(0));
        Self { chosen, counts, scores, num_rows: 0, topk: 0 }
    }

    /// Copies every row's choice to the host.
    #[must_use]
    pub fn download(&self) -> Vec<Vec<u32>> {
        let chosen = self.chosen.read(0, self.num_rows * self.topk);
        let counts = self.counts.read(0, self.num_rows);
        let rows = chosen.chunks(self.topk.max(1)).zip(counts);
        rows.map(|(chosen, count)| chosen[..count as usize].to_vec()).collect()
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Addresses of choices and counts, and the length of a row.
    pub(crate) fn parts(&self) -> (Address, Address, u32) {
        (self.chosen.address(), self.counts.address(), self.topk as u32)
    }

    /// Most entries of a row.
    pub(crate) fn topk(&self) -> usize {
        self.topk
    }

    /// Makes room; the choices are of any value then.
    fn shape(&mut self, gpu: &Gpu, num_rows: usize, topk: usize, num_scores: usize) {
        (self.num_rows, self.topk) = (num_rows, topk);
        if self.chosen.len() < num_rows * topk {
            self.chosen = gpu.zeros(num_rows * topk);
        }
        if self.counts.len() < num_rows {
            self.counts = gpu.zeros(num_rows);
        }
        if self.scores.len() < num_scores {
            self.scores = gpu.zeros(num_scores);
        }
    }
}

/// Chooses for each row the `topk` visible entries with the largest `Σ_h weights[h] * scale * relu(q[h] · key)`, ties to
/// the lower entry; all, where there are no more. `scale` is `(index_head_dim * heads)^-0.5`.
///
/// # Panics
///
/// If a shape does not fit, or the layer has no indexer.
pub fn select(
    gpu: &Gpu,
    step: &Step,
    input: &SelectInput<'_>,
    cache: &Cache,
    selection: &mut Selection,
) {
    let num_rows = step.num_rows();
    let row_scores = if input.max_visible > input.topk { input.max_visible } else { 0 };
    let rows_per_call = SCORE_BYTES_MAX / (row_scores * size_of::<f32>()).max(1);
    let rows_per_call = rows_per_call.clamp(1, ROWS_MAX).min(num_rows.max(1));
    selection.shape(gpu, num_rows, input.topk, rows_per_call * row_scores);
    let args = args(step, input, cache, selection);
    for first_row in (0..num_rows).step_by(rows_per_call) {
        let args = IndexArgs { first_row: first_row as u32, ..args };
        let num_rows = rows_per_call.min(num_rows - first_row) as u32;
        let scores = score_launch(gpu, &args, row_scores, num_rows);
        // SAFETY: rows name blocks of this cache; the tensors' shapes were checked.
        unsafe { gpu.launch(scores, &args) };
        let threads = if row_scores > 4096 { 1024 } else { 256 };
        let choice = Launch {
            kernel: "select_entries",
            grid: [num_rows, 1, 1],
            block: threads,
            shared_bytes: 0,
        };
        // SAFETY: as above.
        unsafe { gpu.launch(choice, &args) };
    }
}

/// How scores are computed, by the shape alone: two kernels' sums differ.
fn score_launch(gpu: &Gpu, args: &IndexArgs, row_scores: usize, num_rows: u32) -> Launch {
    let (dim, num_heads) = (args.dim as usize, args.num_heads as usize);
    if gpu.variant() == Variant::Official && dim == STRETCH_DIM && num_heads <= STRETCH_HEADS_MAX {
        Launch {
            kernel: "index_scores_tiles",
            grid: [row_scores.div_ceil(STRETCH) as u32, num_rows, 1],
            block: 256,
            shared_bytes: 0,
        }
    } else {
        Launch {
            kernel: "index_scores",
            grid: [row_scores.div_ceil(TILE) as u32, num_rows, 1],
            block: TILE as u32,
            shared_bytes: (TILE * (dim | 1) * size_of::<f32>()) as u32,
        }
    }
}

fn args(step: &Step, input: &SelectInput<'_>, cache: &Cache, selection: &Selection) -> IndexArgs {
    let shape = &cache.shape;
    assert!(matches!(shape.kind, LayerKind::Csa { .. }), "a layer without indexer");
    let (num_rows, dim) = (step.num_rows(), shape.index_head_dim);
    let rows = (input.q.num_rows(), input.weights.num_rows());
    assert_eq!(rows, (num_rows, num_rows), "rows of queries and weights");
    let widths = (input.num_heads * dim, input.num_heads);
    assert_eq!((input.q.cols(), input.weights.cols()), widths, "widths of queries and weights");
    IndexArgs {
        rows: step.rows().address(),
        blocks: step.blocks().address(),
        q: input.q.act(),
        weights: input.weights.act(),
        keys: cache.index_keys.data.address(),
        scales: cache.index_keys.scales.address(),
        scores: selection.scores.address(),
        chosen: selection.chosen.address(),
        counts: selection.counts.address(),
        first_row: 0,
        num_heads: input.num_heads as u32,
        dim: dim as u32,
        ratio: cache.ratio(),
        entries_per_block: shape.entries_per_block as u32,
        row_bytes: cache.index_keys.row_bytes,
        scale_bytes: cache.index_keys.scale_bytes,
        max_visible: input.max_visible as u32,
        topk: input.topk as u32,
        scale: (dim as f64 * input.num_heads as f64).sqrt().recip() as f32,
    }
}
