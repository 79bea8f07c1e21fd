//! Runs a known token sequence through a group of ranks in this process, and compares logits with known ones.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use switchyard_moe::capacity::num_blocks;
use switchyard_moe::ids::{BlockId, EpRank, GroupEpoch, SequenceId, StepId};
use switchyard_moe::placement::Placement;

use crate::backend::Numerics;
use crate::backend::device::{Device, DeviceModel};
use crate::collective::local::{self, Local};
use crate::kv_cache::CacheLimits;
use crate::model::{self, LoadOptions};
use crate::step::{ChunkTokens, SequenceChunk, SequenceStart, StepBatch};
use crate::weights::Checkpoint;

#[cfg(test)]
pub(crate) mod tests;

/// Longest wait for a rank of this process: as long as a big model's step may take on one thread.
const DEADLINE: Duration = Duration::from_secs(600);

/// How to run the sequence. The logits must not depend on any of it but the numerics.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where every rank computes.
    pub device: Device,
    /// How to compute.
    pub numerics: Numerics,
    /// Ranks of the group, each a thread.
    pub num_workers: NonZeroUsize,
    /// Threads of each rank.
    pub num_threads: NonZeroUsize,
    /// The rank that the sequence lives on.
    pub owner: EpRank,
    /// Tokens of a prefill chunk; `None` for the whole prompt at once.
    pub prefill_chunk: Option<NonZeroUsize>,
    /// Tokens from this index on are fed one at a time.
    pub decode_from: Option<usize>,
}

/// Why the sequence could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tokens.
    #[error("the sequence has no tokens")]
    Empty,
    /// The owner is not in the group.
    #[error("rank {owner} is not one of {num_workers} workers")]
    Owner {
        /// The rank named.
        owner: EpRank,
        /// Ranks of the group.
        num_workers: NonZeroUsize,
    },
    /// A rank failed.
    #[error("rank {rank} failed")]
    Rank {
        /// The rank.
        rank: EpRank,
        /// Why.
        #[source]
        source: model::Error,
    },
    /// A rank's thread panicked.
    #[error("rank {rank} panicked")]
    Panicked {
        /// The rank.
        rank: EpRank,
    },
}

/// Our logits against known ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Rows compared.
    pub num_rows: usize,
    /// Largest absolute difference; NaN if there is a NaN.
    pub max_abs: f32,
    /// Root of the mean squared difference.
    pub rms: f64,
    /// Rows whose largest logit is the same one.
    pub num_argmax_equal: usize,
}

/// The logits of every token of `ids`, `[ids.len(), vocab_size]`, computed by a group of ranks.
///
/// # Errors
/// See [`Error`].
pub fn logits(checkpoint: &Checkpoint, ids: &[u32], options: &Options) -> Result<Vec<f32>, Error> {
    let Options { num_workers, owner, .. } = *options;
    if ids.is_empty() {
        return Err(Error::Empty);
    }
    if owner.0 as usize >= num_workers.get() {
        return Err(Error::Owner { owner, num_workers });
    }
    let mesh = local::mesh(num_workers.get(), GroupEpoch(1), DEADLINE);
    let results: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> = (0..)
            .map(EpRank)
            .zip(mesh)
            .map(|(rank, local)| {
                (rank, scope.spawn(move || run_rank(checkpoint, ids, options, (rank, local))))
            })
            .collect();
        ranks
            .into_iter()
            .map(|(rank, thread)| match thread.join() {
                Ok(result) => result.map_err(|source| Error::Rank { rank, source }),
                Err(_) => Err(Error::Panicked { rank }),
            })
            .collect()
    });
    first_cause(results)
}

/// All ranks' logits (only the owner has any), or the error that is not the echo of another rank's.
fn first_cause(results: Vec<Result<Vec<f32>, Error>>) -> Result<Vec<f32>, Error> {
    let mut all = Vec::new();
    let mut echo = None;
    for result in results {
        match result {
            Ok(logits) => all.extend(logits),
            Err(error @ Error::Rank { source: model::Error::Collective { .. }, .. }) => {
                echo = echo.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    echo.map_or(Ok(all), Err)
}

/// One rank of the group; the owner returns the logits.
fn run_rank(
    checkpoint: &Checkpoint,
    ids: &[u32],
    options: &Options,
    (rank, mut local): (EpRank, Local),
) -> Result<Vec<f32>, model::Error> {
    let config = checkpoint.config();
    let placement = Placement::contiguous(
        config.num_hidden_layers,
        config.n_routed_experts,
        options.num_workers.get(),
    );
    let limits = CacheLimits {
        num_blocks: num_blocks(ids.len()),
        max_num_seqs: 1,
        max_num_batched_tokens: ids.len(),
        max_model_len: ids.len(),
    };
    let load = LoadOptions {
        rank,
        placement,
        numerics: options.numerics,
        limits,
        num_threads: options.num_threads,
        exchange_deadline: DEADLINE,
    };
    let mut model = DeviceModel::load(&options.device, checkpoint, &load, &mut |_| {})?;
    let mut logits = Vec::new();
    for (step, batch) in (1..).map(StepId).zip(batches(ids, options)) {
        let batch = if rank == options.owner { batch } else { StepBatch::default() };
        logits.extend(model.step_with_logits(step, &batch, &mut local)?.1);
    }
    Ok(logits)
}

/// One batch per step: the prompt in chunks, then single tokens.
fn batches(ids: &[u32], options: &Options) -> Vec<StepBatch> {
    let (prompt, decoded) =
        ids.split_at(options.decode_from.map_or(ids.len(), |p| p.min(ids.len())));
    let chunk = options.prefill_chunk.map_or(ids.len(), NonZeroUsize::get);
    let mut first = 0;
    prompt
        .chunks(chunk)
        .chain(decoded.chunks(1))
        .map(|tokens| {
            let new_blocks = num_blocks(first)..num_blocks(first + tokens.len());
            let chunk = SequenceChunk {
                sequence: SequenceId(1),
                first_position: first as u32,
                tokens: ChunkTokens::Ids(tokens.to_vec()),
                new_blocks: new_blocks.map(|block| BlockId(block as u32)).collect(),
                start: (first == 0).then(SequenceStart::default),
                samples: false,
            };
            first += tokens.len();
            StepBatch { chunks: vec![chunk], released: Vec::new() }
        })
        .collect()
}

/// Compares the last rows of `ours` with `golden`, both `[rows, vocab_size]`.
#[must_use]
pub fn compare(ours: &[f32], golden: &[f32], vocab_size: usize) -> Comparison {
    let ours = &ours[ours.len().saturating_sub(golden.len())..];
    let mut max_abs = 0.0_f32;
    let mut squares = 0.0;
    for (ours, golden) in ours.iter().zip(golden) {
        let difference = (ours - golden).abs();
        // Unlike `f32::max`, keeps a NaN.
        if difference.is_nan() || difference > max_abs {
            max_abs = difference;
        }
        squares += f64::from(difference) * f64::from(difference);
    }
    let rows = ours.chunks(vocab_size).zip(golden.chunks(vocab_size));
    Comparison {
        num_rows: golden.len() / vocab_size,
        max_abs,
        rms: (squares / golden.len() as f64).sqrt(),
        num_argmax_equal: rows.filter(|(ours, golden)| argmax(ours) == argmax(golden)).count(),
    }
}

/// SHA-256, in hexadecimal, of the little-endian bits of `logits`.
#[must_use]
pub fn fingerprint(logits: &[f32]) -> String {
    let mut hash = Sha256::new();
    for logit in logits {
        hash.update(logit.to_le_bytes());
    }
    hex::encode(hash.finalize())
}

fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}
