//! From logits to tokens; see [`crate::sampling`].

use super::{Address, Gpu, Launch, Pod, Tensor};

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
    /// Draw among the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Alternatives to report.
    pub num_top_logprobs: u32,
    /// Whether to report the token's log probability: 0 or 1.
    pub wants_logprob: u32,
}

// SAFETY: eight numbers without padding.
unsafe impl Pod for SampleParams {}

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
struct SampleArgs {
    logits: Address,
    params: Address,
    out: Address,
    vocab: u32,
    row_words: u32,
}

/// Draws a token from each row of `logits`, `f32` `[params.len(), vocab]`. Waits for the device.
///
/// # Panics
///
/// If rows and parameters are not as many, or there is no logit.
#[must_use]
pub fn sample(gpu: &Gpu, logits: &Tensor, params: &[SampleParams]) -> Vec<Sampled> {
    assert_eq!(logits.num_rows(), params.len(), "rows of logits");
    assert!(logits.cols() > 0, "a vocabulary has tokens");
    let most = params.iter().map(|p| p.num_top_logprobs as usize).max().unwrap_or(0);
    let row_words = 2 + 2 * most;
    let out = gpu.allocate::<u32>(params.len() * row_words);
    let uploaded = gpu.upload(params);
    let args = SampleArgs {
        logits: logits.f32(),
        params: uploaded.address(),
        out: out.address(),
        vocab: logits.cols() as u32,
        row_words: row_words as u32,
    };
    let grid = [params.len() as u32, 1, 1];
    let launch = Launch { kernel: "sample_rows", grid, block: 1024, shared_bytes: 0 };
    // SAFETY: one row of logits, of parameters and of results for each block.
    unsafe { gpu.launch(launch, &args) };
    let words = out.read(0, params.len() * row_words);
    let rows = words.chunks_exact(row_words).zip(params);
    rows.map(|(row, params)| sampled(row, params, logits.cols())).collect()
}

fn sampled(row: &[u32], params: &SampleParams, vocab: usize) -> Sampled {
    let num_top = (params.num_top_logprobs as usize).min(vocab);
    let (pairs, _) = row.as_chunks::<2>();
    let mut pairs = pairs.iter().map(|&[token, logprob]| (token, f32::from_bits(logprob)));
    let (token, logprob) = pairs.next().unwrap_or_default();
    Sampled { token, logprob, top: pairs.take(num_top).collect() }
}
