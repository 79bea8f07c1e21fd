//! Each kernel of a GPU at the shapes of given models: how long it takes, and how that compares with what its bytes and
//! operations must take.

use switchyard_moe::config::ModelConfig;

use crate::backend::device::{Device, measure};
use crate::model;

#[cfg(test)]
mod tests;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The GPU.
    pub device: Device,
    /// Whose shapes.
    pub models: Vec<Shape>,
    /// Only rows whose op or shape contains this.
    pub filter: String,
    /// Rows of ops on tokens.
    pub tokens: Vec<usize>,
    /// Rows of each expert.
    pub rows_per_expert: Vec<usize>,
    /// Sequences that attend, a token each.
    pub batches: Vec<usize>,
    /// Tokens before theirs.
    pub contexts: Vec<usize>,
    /// Bytes of the copy that tells how fast memory is.
    pub copy_bytes: usize,
    /// Bytes of weights that runs go through in turn: more than a cache holds.
    pub rotated_bytes: usize,
    /// Time that the runs of a row take together.
    pub row_seconds: f64,
}

/// A model and the ranks that share its experts.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub config: ModelConfig,
    /// Ranks.
    pub num_ranks: usize,
}

/// What nothing can exceed.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// The GPU's name.
    pub name: String,
    /// Bytes per second, read and written, of a copy in its memory: measured.
    pub copy_bandwidth: f64,
    /// Operations per second on bf16, dense: of the datasheet, if the name is known.
    pub flops: Option<f64>,
}

/// One op at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The op.
    pub op: String,
    /// The shape, the model's name first.
    pub shape: String,
    /// Time of a run.
    pub seconds: f64,
    /// Bytes that a run must read and write.
    pub num_bytes: f64,
    /// Multiplications and additions that a run must do on matrices.
    pub num_flops: f64,
}

/// All rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What the device can do.
    pub ceilings: Ceilings,
    /// What kernels do.
    pub rows: Vec<Measured>,
}

/// What there is to tell while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// The first thing that is known.
    Ceilings(&'a Ceilings),
    /// Another row.
    Row(&'a Ceilings, &'a Measured),
}

/// Measures every kernel; `observe` hears of each.
///
/// # Errors
/// When there is no such GPU, or it fails.
pub fn run(options: &Options, observe: &mut dyn FnMut(Event<'_>)) -> Result<Report, model::Error> {
    measure::kernels(options, observe)
}

// === impl Options ===

impl Options {
    /// V4-Flash on 8 ranks and V4-Pro on 16, in decode and prefill.
    #[must_use]
    pub fn published(device: Device, filter: String) -> Self {
        let shape =
            |name: &str, config, num_ranks| Shape { name: name.to_owned(), config, num_ranks };
        Self {
            device,
            models: vec![
                shape("flash", ModelConfig::v4_flash(), 8),
                shape("pro", ModelConfig::v4_pro(), 16),
            ],
            filter,
            tokens: vec![1, 32, 128, 256, 4096],
            rows_per_expert: vec![1, 4, 16, 512],
            batches: vec![1, 32, 128],
            contexts: vec![4096, 65_536, 1_000_000],
            copy_bytes: 1 << 30,
            rotated_bytes: 512 << 20,
            row_seconds: 0.05,
        }
    }
}

// === impl Ceilings ===

impl Ceilings {
    /// Those of the GPU `name`.
    #[must_use]
    pub fn new(name: &str, copy_bandwidth: f64) -> Self {
        // NVIDIA's datasheets, SXM modules, without sparsity.
        let sheets = [("A100", 312e12), ("H100", 989e12), ("H200", 989e12), ("B200", 2250e12)];
        let flops = sheets.iter().find(|(known, _)| name.contains(known)).map(|&(_, flops)| flops);
        Self { name: name.to_owned(), copy_bandwidth, flops }
    }
}

// === impl Measured ===

impl Measured {
    /// The least time that bytes and operations take, over the time taken.
    #[must_use]
    pub fn share(&self, ceilings: &Ceilings) -> f64 {
        let moving = self.num_bytes / ceilings.copy_bandwidth;
        let computing = ceilings.flops.map_or(0.0, |flops| self.num_flops / flops);
        moving.max(computing) / self.seconds
    }
}
