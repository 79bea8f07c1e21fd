//! `switchyard verify`: compares a model's logits with those of a golden file.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use switchyard_moe::ids::EpRank;
use switchyard_worker::backend::Numerics;
use switchyard_worker::backend::device::{Device, Exchange};
use switchyard_worker::verify::{self, Options};
use switchyard_worker::weights::Checkpoint;

use crate::{config, terminal};

#[cfg(test)]
mod tests;

/// Arguments of `switchyard verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// File with the tokens in tensor `ids` and the known logits.
    #[arg(long, value_name = "FILE")]
    golden: PathBuf,
    /// Name of the tensor with the known logits, `[rows, vocab]`; fewer rows than ids are the last ones.
    #[arg(long, value_name = "NAME")]
    key: String,
    /// How to compute: `exact` or `official`.
    #[arg(long, default_value = "exact", value_name = "NAME")]
    numerics: Numerics,
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// How GPUs exchange rows: `nccl` or `host`.
    #[arg(long, default_value = "nccl", value_name = "WAY")]
    exchange: Exchange,
    /// Folder of compiled GPU kernels [default: the user's cache folder].
    #[arg(long, env = "SWITCHYARD_KERNEL_CACHE", value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
    /// Ranks that share the experts, each a thread of this process.
    #[arg(long, default_value = "1", value_name = "N")]
    workers: NonZeroUsize,
    /// Threads of each rank.
    #[arg(long, default_value = "1", value_name = "N")]
    threads: NonZeroUsize,
    /// Rank that holds the sequence.
    #[arg(long, default_value = "0", value_name = "RANK")]
    owner_rank: u32,
    /// Tokens of a prefill chunk [default: the whole prompt at once].
    #[arg(long, value_name = "K")]
    prefill_chunk: Option<NonZeroUsize>,
    /// Feed tokens from this index on one at a time [default: none].
    #[arg(long, value_name = "P")]
    decode_from: Option<usize>,
    /// Largest absolute difference with which the exit status is 0.
    #[arg(long, default_value = "2e-4", value_name = "X")]
    tolerance: f32,
}

/// What a golden file says.
#[derive(Debug)]
struct Golden {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// Runs the command. The exit status is 0 iff the logits are within the tolerance.
///
/// # Errors
/// When the checkpoint or the golden file cannot be used.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let vocab_size = checkpoint.config().vocab_size;
    let golden = Golden::read(&args.golden, &args.key, vocab_size)
        .with_context(|| format!("cannot compare with {}", args.golden.display()))?;
    let kernel_cache = args.kernel_cache.unwrap_or_else(config::default_kernel_cache);
    let device = args.device.with_kernel_cache(kernel_cache);
    device.prepare(args.numerics, &mut |compiled| terminal::note(compiled))?;
    let options = Options {
        device: device.with_exchange(args.exchange),
        numerics: args.numerics,
        num_workers: args.workers,
        num_threads: args.threads,
        owner: EpRank(args.owner_rank),
        prefill_chunk: args.prefill_chunk,
        decode_from: args.decode_from,
    };
    let ours = verify::logits(&checkpoint, &golden.ids, &options)?;
    let comparison = verify::compare(&ours, &golden.logits, vocab_size);
    let within = comparison.max_abs <= args.tolerance;
    terminal::line(format_args!("rows     {}", comparison.num_rows));
    terminal::line(format_args!("max abs  {:.3e}", comparison.max_abs));
    terminal::line(format_args!("rms      {:.3e}", comparison.rms));
    terminal::line(format_args!(
        "argmax   {} of {} agree",
        comparison.num_argmax_equal, comparison.num_rows
    ));
    terminal::line(format_args!("sha256   {}", verify::fingerprint(&ours)));
    terminal::line(format_args!(
        "{} the tolerance of {:.1e}",
        if within { "within" } else { "NOT within" },
        args.tolerance
    ));
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// === impl Golden ===

impl Golden {
    fn read(path: &Path, key: &str, vocab_size: usize) -> anyhow::Result<Self> {
        let bytes = fs::read(path)?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let ids = token_ids(&tensors)?;
        let logits = tensors.tensor(key).with_context(|| {
            format!("it has no tensor {key:?}, but {}", tensors.names().join(", "))
        })?;
        ensure!(
            logits.dtype() == Dtype::F32,
            "tensor {key:?} is {:?}, logits are F32",
            logits.dtype()
        );
        match *logits.shape() {
            [rows, cols] if cols == vocab_size && (1..=ids.len()).contains(&rows) => {}
            ref shape => bail!(
                "tensor {key:?} has shape {shape:?}, logits of {} tokens have [{}, {vocab_size}] or fewer rows",
                ids.len(),
                ids.len()
            ),
        }
        let (chunks, _) = logits.data().as_chunks();
        let logits = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
        Ok(Self { ids, logits })
    }
}

fn token_ids(tensors: &SafeTensors<'_>) -> anyhow::Result<Vec<u32>> {
    let ids = tensors.tensor("ids").context("it has no tensor \"ids\"")?;
    let bytes = ids.data();
    let wide: Vec<i64> = if ids.dtype() == Dtype::I64 {
        bytes.as_chunks().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect()
    } else if ids.dtype() == Dtype::I32 {
        bytes.as_chunks().0.iter().map(|chunk| i32::from_le_bytes(*chunk).into()).collect()
    } else {
        bail!("tensor \"ids\" is {:?}, token ids are I64 or I32", ids.dtype())
    };
    wide.into_iter()
        .map(|id| u32::try_from(id).with_context(|| format!("token {id} is no token id")))
        .collect()
}
