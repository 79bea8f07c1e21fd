//! Round trips through number formats, of official numerics; see [`crate::quant`] and [`crate::hadamard`].

use super::{Address, Gpu, Launch, Tensor, Variant};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block.
const THREADS: usize = 256;
/// Numbers of 16 bytes.
const VECTOR: usize = 8;
const WARP: usize = 32;
/// The largest head that a warp's registers hold.
const HEAD_DIM_MAX: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy)]
struct Fp8Args {
    x: Address,
    out: Address,
    stride: u32,
    num_channels: u32,
    block: u32,
    vector: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QuantIndexArgs {
    x: Address,
    len: u64,
    head_dim: u32,
}

/// Rounds every `block` channels of each row of `x` `[num_rows, cols]` to e4m3 with a scale of their own, into `out` of the
/// same shape. The last block of a row may be shorter.
///
/// # Panics
///
/// If the variant is not the official one, or `block` is 0.
pub fn fp8_round_trip(gpu: &Gpu, x: &Tensor, block: usize, out: &mut Tensor) {
    out.shape(gpu.act(), x.num_rows(), x.cols());
    round_trip(gpu, x, [x.cols(), block], out.act());
}

/// The same for the first `num_channels` of each row of `x`, in place: rows of the KV cache.
///
/// # Panics
///
/// If the variant is not the official one, rows are shorter, or `block` is 0.
pub fn fp8_round_trip_head(gpu: &Gpu, x: &mut Tensor, num_channels: usize, block: usize) {
    assert!(num_channels <= x.cols(), "{num_channels} channels of {}", x.cols());
    round_trip(gpu, x, [num_channels, block], x.act());
}

fn round_trip(gpu: &Gpu, x: &Tensor, [num_channels, block]: [usize; 2], out: Address) {
    assert_eq!(gpu.variant(), Variant::Official, "exact numerics rounds nothing");
    assert!(block > 0, "a block has channels");
    let in_vectors = block.is_power_of_two() && (VECTOR..=VECTOR * WARP).contains(&block);
    let aligned = [x.cols(), num_channels].iter().all(|len| len.is_multiple_of(VECTOR));
    let vector = in_vectors && aligned;
    let lanes = if vector { block / VECTOR } else { WARP };
    let num_threads = num_channels.div_ceil(block) * lanes;
    let threads = num_threads.next_multiple_of(WARP).clamp(WARP, THREADS);
    let args = Fp8Args {
        x: x.act(),
        out,
        stride: x.cols() as u32,
        num_channels: num_channels as u32,
        block: block as u32,
        vector: u32::from(vector),
    };
    let grid = [x.num_rows() as u32, num_threads.div_ceil(threads) as u32, 1];
    let launch = Launch { kernel: "fp8_round_trip", grid, block: threads as u32, shared_bytes: 0 };
    // SAFETY: `x` and `out` hold as many rows of `stride` activations, no fewer than `num_channels`.
    unsafe { gpu.launch(launch, &args) };
}

/// Prepares indexer queries, in place: every head of `head_dim` channels goes through the orthonormal Hadamard transform, is
/// rounded, and goes through e2m1 with a scale per 32 channels.
///
/// # Panics
///
/// If the variant is not the official one, `x` is not made of whole heads, or `head_dim` is no power of two up to 1024.
pub fn quantize_index(gpu: &Gpu, x: &mut Tensor, head_dim: usize) {
    assert_eq!(gpu.variant(), Variant::Official, "exact numerics rounds nothing");
    let fits = head_dim.is_power_of_two() && head_dim <= HEAD_DIM_MAX;
    assert!(fits, "heads of {head_dim} channels: no power of two up to {HEAD_DIM_MAX}");
    assert_eq!(x.cols() % head_dim, 0, "width of x over heads of {head_dim}");
    let len = x.num_rows() * x.cols();
    let args = QuantIndexArgs { x: x.act(), len: len as u64, head_dim: head_dim as u32 };
    let per_lane = head_dim.max(WARP) / WARP;
    let grid = [len.div_ceil(per_lane * THREADS) as u32, 1, 1];
    let launch = Launch { kernel: "quantize_index", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: `x` holds `len` activations.
    unsafe { gpu.launch(launch, &args) };
}
