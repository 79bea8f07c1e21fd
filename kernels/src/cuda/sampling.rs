//! From logits to tokens; see [`crate::sampling`].

use super::{Address, Gpu, Launch, Memory, Pod, Tensor};
use crate::sampling::Adjustment;

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// How to draw one token; see [`crate::sampling::Sampling`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleParams {
    /// Low half of the request's seed.
    pub seed_lo: u32,
    /// High half.
    pub seed_hi: u32,
    /// Index among the request's choices.
    pub choice: u32,
    /// Absolute position of the token that is drawn.
    pub position: u32,
    /// 0 for the most likely token.
    pub temperature: f32,
    /// Draw among tokens at least this share as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// Draw among this many most likely tokens; 0 for all.
    pub top_k: u32,
    /// Draw among the most likely of these that together reach this share of their probability; 1 for all.
    pub top_p: f32,
    /// Alternatives to report.
    pub num_top_logprobs: u32,
    /// Whether to report the token's log probability: 0 or 1.
    pub wants_logprob: u32,
}

/// [`SampleParams`] and where the row to draw from lies.
#[repr(C)]
#[derive(Clone, Copy)]
struct RowParams {
    params: SampleParams,
    adjusted_row: u32,
}

// SAFETY: eleven numbers without padding.
unsafe impl Pod for RowParams {}

/// What is done to one row before it is drawn from.
#[repr(C)]
#[derive(Clone, Copy)]
struct RowAdjustment {
    row: u32,
    first_bias: u32,
    end_bias: u32,
    first_word: u32,
}

// SAFETY: four numbers without padding.
unsafe impl Pod for RowAdjustment {}

/// What was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its log probability, 0 unless it was asked for.
    pub logprob: f32,
    /// The most likely tokens with their log probabilities, most likely first; ties to the lower id.
    pub top: Vec<(u32, f32)>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AdjustArgs {
    logits: Address,
    adjusted: Address,
    adjustments: Address,
    bias_tokens: Address,
    biases: Address,
    allowed: Address,
    vocab: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleArgs {
    logits: Address,
    adjusted: Address,
    params: Address,
    out: Address,
    vocab: u32,
    row_words: u32,
}

/// No row or word of this number.
const NONE: u32 = u32::MAX;

/// Draws a token from each row of `logits`, `f32` `[params.len(), vocab]`, after its adjustment. Waits for the device.
///
/// # Panics
///
/// If rows, parameters and adjustments are not as many, there is no logit, or an adjustment is not for the vocabulary.
#[must_use]
pub fn sample(
    gpu: &Gpu,
    logits: &Tensor,
    params: &[SampleParams],
    adjustments: &[Adjustment<'_>],
) -> Vec<Sampled> {
    assert_eq!(logits.num_rows(), params.len(), "rows of logits");
    assert_eq!(adjustments.len(), params.len(), "adjustments");
    assert!(logits.cols() > 0, "a vocabulary has tokens");
    let most = params.iter().map(|p| p.num_top_logprobs as usize).max().unwrap_or(0);
    let row_words = 2 + 2 * most;
    let out = gpu.allocate::<u32>(params.len() * row_words);
    let (adjusted, adjusted_rows) = adjust(gpu, logits, adjustments);
    let rows: Vec<_> = params
        .iter()
        .zip(adjusted_rows)
        .map(|(&params, adjusted_row)| RowParams { params, adjusted_row })
        .collect();
    let uploaded = gpu.upload(&rows);
    let args = SampleArgs {
        logits: logits.f32(),
        adjusted: adjusted.address(),
        params: uploaded.address(),
        out: out.address(),
        vocab: logits.cols() as u32,
        row_words: row_words as u32,
    };
    let grid = [params.len() as u32, 1, 1];
    let launch = Launch { kernel: "sample_rows", grid, block: 1024, shared_bytes: 0 };
    // SAFETY: one row of logits, of parameters and of results for each block; adjusted rows are numbered by `adjust`.
    unsafe { gpu.launch(launch, &args) };
    let words = out.read(0, params.len() * row_words);
    let rows = words.chunks_exact(row_words).zip(params);
    rows.map(|(row, params)| sampled(row, params, logits.cols())).collect()
}

/// Adjusted copies of the rows that are adjusted, and for every row the number of its copy or [`NONE`].
fn adjust(gpu: &Gpu, logits: &Tensor, all: &[Adjustment<'_>]) -> (Memory<f32>, Vec<u32>) {
    let vocab = logits.cols();
    let (mut adjustments, mut copies) = (Vec::new(), Vec::new());
    let (mut tokens, mut biases, mut words) = (Vec::new(), Vec::new(), Vec::new());
    for (row, adjustment) in (0..).zip(all) {
        if adjustment.is_empty() {
            copies.push(NONE);
            continue;
        }
        copies.push(adjustments.len() as u32);
        let first_bias = tokens.len() as u32;
        for &(token, bias) in adjustment.bias {
            assert!((token as usize) < vocab, "token {token} of {vocab}");
            tokens.push(token);
            biases.push(bias);
        }
        let first_word = adjustment.allowed.map_or(NONE, |_| words.len() as u32);
        if let Some(allowed) = adjustment.allowed {
            assert!(allowed.len() * 32 >= vocab, "a bit for every token");
            words.extend_from_slice(allowed);
        }
        let end_bias = tokens.len() as u32;
        adjustments.push(RowAdjustment { row, first_bias, end_bias, first_word });
    }
    let adjusted = gpu.allocate::<f32>(adjustments.len() * vocab);
    if !adjustments.is_empty() {
        let (uploaded, tokens) = (gpu.upload(&adjustments), gpu.upload(&tokens));
        let (biases, words) = (gpu.upload(&biases), gpu.upload(&words));
        let args = AdjustArgs {
            logits: logits.f32(),
            adjusted: adjusted.address(),
            adjustments: uploaded.address(),
            bias_tokens: tokens.address(),
            biases: biases.address(),
            allowed: words.address(),
            vocab: vocab as u32,
        };
        let grid = [adjustments.len() as u32, 1, 1];
        let launch = Launch { kernel: "adjust_logits", grid, block: 1024, shared_bytes: 0 };
        // SAFETY: one copy for each block, of a row of `logits`; tokens and masks were checked against the vocabulary.
        unsafe { gpu.launch(launch, &args) };
    }
    (adjusted, copies)
}

fn sampled(row: &[u32], params: &SampleParams, vocab: usize) -> Sampled {
    let num_top = (params.num_top_logprobs as usize).min(vocab);
    let (pairs, _) = row.as_chunks::<2>();
    let mut pairs = pairs.iter().map(|&[token, logprob]| (token, f32::from_bits(logprob)));
    let (token, logprob) = pairs.next().unwrap_or_default();
    Sampled { token, logprob, top: pairs.take(num_top).collect() }
}
