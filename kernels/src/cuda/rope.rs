//! Rotary position embedding; see [`crate::rope`].

use super::{Address, Elem, Gpu, Launch, Memory, Step, Tensor};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block.
const THREADS: usize = 256;
/// Pairs that a thread takes where they are aligned.
const VECTOR: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct AnglesArgs {
    rows: Address,
    inv_freq: Address,
    out: Address,
    num_rows: u32,
    num_pairs: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeArgs {
    x: Address,
    angles: Address,
    num_heads: u32,
    head_dim: u32,
    num_pairs: u32,
    inverse: u32,
    vector: u32,
}

/// The rotation of every row of the step, by its position: cosine and sine of each pair, in `f32`, into `out`
/// `[num_rows, 2 * inv_freq.len()]`.
pub fn rope_angles(gpu: &Gpu, step: &Step, inv_freq: &Memory<f32>, out: &mut Tensor) {
    let (num_rows, num_pairs) = (step.num_rows(), inv_freq.len());
    out.shape(Elem::F32, num_rows, 2 * num_pairs);
    let args = AnglesArgs {
        rows: step.rows().address(),
        inv_freq: inv_freq.address(),
        out: out.f32(),
        num_rows: num_rows as u32,
        num_pairs: num_pairs as u32,
    };
    let grid = [(num_rows * num_pairs).div_ceil(THREADS) as u32, 1, 1];
    let launch = Launch { kernel: "rope_angles", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: the step has `num_rows` rows, and `out` was given its shape.
    unsafe { gpu.launch(launch, &args) };
}

/// Rotates the last channels of every head of `head_dim` of `x` `[num_rows, num_heads * head_dim]`, in place, by
/// interleaved pairs, with the angles of its row; inverse by the opposite ones.
///
/// # Panics
///
/// If `x` is not made of whole heads, heads are shorter than the rotation, or the rows of `angles` are others.
pub fn rope(gpu: &Gpu, x: &mut Tensor, head_dim: usize, angles: &Tensor, inverse: bool) {
    let (num_rows, num_pairs) = (x.num_rows(), angles.cols() / 2);
    assert_eq!(x.cols() % head_dim, 0, "width of x over heads of {head_dim}");
    assert_eq!(angles.num_rows(), num_rows, "rows of the angles");
    assert!(2 * num_pairs <= head_dim, "{num_pairs} pairs of {head_dim} channels");
    let num_heads = x.cols() / head_dim;
    let vector = num_pairs.is_multiple_of(VECTOR) && head_dim.is_multiple_of(2 * VECTOR);
    let num_threads = num_heads * num_pairs / if vector { VECTOR } else { 1 };
    let args = RopeArgs {
        x: x.act(),
        angles: angles.f32(),
        num_heads: num_heads as u32,
        head_dim: head_dim as u32,
        num_pairs: num_pairs as u32,
        inverse: u32::from(inverse),
        vector: u32::from(vector),
    };
    let grid = [num_rows as u32, num_threads.div_ceil(THREADS) as u32, 1];
    let launch = Launch { kernel: "rope", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: `x` has `num_rows` rows of heads, `angles` as many of pairs.
    unsafe { gpu.launch(launch, &args) };
}
