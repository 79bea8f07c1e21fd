//! The gate: which experts see a token, and with what weight; see [`crate::gate`].

use super::{Address, Gpu, Launch, Memory, Tensor};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block.
const THREADS: usize = 128;
/// Rows of a block, a warp each.
const ROWS: usize = THREADS / 32;
/// More would not fit into a block's shared memory.
const EXPERTS_MAX: usize = 48 * 1024 / (ROWS * 8);

/// How experts are chosen.
#[derive(Debug)]
pub enum GateChoice<'a> {
    /// The highest scores after adding a bias.
    Score {
        /// `[num_experts]`
        bias: &'a Memory<f32>,
    },
    /// By token id.
    Hash {
        /// `[vocab, num_topk]`
        table: &'a Memory<u32>,
        /// `[num_rows]`
        ids: &'a Memory<u32>,
    },
}

/// Each row's experts and their weights.
#[derive(Debug)]
pub struct Routing {
    experts: Memory<u32>,
    weights: Memory<f32>,
    num_rows: usize,
    num_topk: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GateArgs {
    logits: Address,
    bias: Address,
    table: Address,
    ids: Address,
    experts: Address,
    weights: Address,
    num_rows: u32,
    num_experts: u32,
    num_topk: u32,
    vocab: u32,
    scaling: f32,
}

// === impl Routing ===

impl Routing {
    /// Of no rows.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self { experts: gpu.zeros(0), weights: gpu.zeros(0), num_rows: 0, num_topk: 0 }
    }

    /// Each row's experts, highest score first, `[num_rows, num_topk]` at least.
    #[must_use]
    pub fn experts(&self) -> &Memory<u32> {
        &self.experts
    }

    /// The weight of each, `[num_rows, num_topk]` at least.
    #[must_use]
    pub fn weights(&self) -> &Memory<f32> {
        &self.weights
    }

    /// Rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Experts of a row.
    #[must_use]
    pub fn num_topk(&self) -> usize {
        self.num_topk
    }

    /// Makes room for another number of rows.
    pub(super) fn shape(&mut self, gpu: &Gpu, num_rows: usize, num_topk: usize) {
        (self.num_rows, self.num_topk) = (num_rows, num_topk);
        if num_rows * num_topk > self.experts.len() {
            self.experts = gpu.zeros(num_rows * num_topk);
            self.weights = gpu.zeros(num_rows * num_topk);
        }
    }

    /// Experts and weights of the caller's choice.
    #[cfg(test)]
    #[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
    pub(super) fn set(&mut self, gpu: &Gpu, experts: &[u32], weights: &[f32], num_topk: usize) {
        self.shape(gpu, experts.len() / num_topk, num_topk);
        self.experts.write(0, experts);
        self.weights.write(0, weights);
    }
}

/// Chooses the `num_topk` experts of every row of `logits` `[num_rows, num_experts]` in `f32`. A weight is the expert's
/// `sqrt(softplus(logit))` over the sum of those chosen, times `scaling`.
///
/// # Panics
///
/// If there are fewer experts than `num_topk`, or a length does not fit.
pub fn gate(
    gpu: &Gpu,
    logits: &Tensor,
    choice: &GateChoice<'_>,
    (scaling, num_topk): (f32, usize),
    routing: &mut Routing,
) {
    let (num_rows, num_experts) = (logits.num_rows(), logits.cols());
    assert!((1..=num_experts).contains(&num_topk), "{num_topk} of {num_experts} experts");
    assert!(num_experts <= EXPERTS_MAX, "{num_experts} experts, of {EXPERTS_MAX} at most");
    routing.shape(gpu, num_rows, num_topk);
    let (mut bias_at, mut table_at, mut ids_at, mut vocab) = (0, 0, 0, 0);
    match choice {
        GateChoice::Score { bias } => {
            assert_eq!(bias.len(), num_experts, "length of the bias");
            bias_at = bias.address();
        }
        GateChoice::Hash { table, ids } => {
            assert!(num_rows <= ids.len(), "{num_rows} rows of {} ids", ids.len());
            assert_eq!(table.len() % num_topk, 0, "length of the table");
            vocab = table.len() / num_topk;
            (table_at, ids_at) = (table.address(), ids.address());
        }
    }
    let args = GateArgs {
        logits: logits.f32(),
        bias: bias_at,
        table: table_at,
        ids: ids_at,
        experts: routing.experts.address(),
        weights: routing.weights.address(),
        num_rows: num_rows as u32,
        num_experts: num_experts as u32,
        num_topk: num_topk as u32,
        vocab: vocab as u32,
        scaling,
    };
    let launch = Launch {
        kernel: "gate",
        grid: [num_rows.div_ceil(ROWS) as u32, 1, 1],
        block: THREADS as u32,
        shared_bytes: (ROWS * num_experts * 8) as u32,
    };
    // SAFETY: all lengths were checked, and those of the routing made; ids and table entries are clamped.
    unsafe { gpu.launch(launch, &args) };
}
