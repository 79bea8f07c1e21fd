//! Root-mean-square normalisation; see [`crate::norm`].

use super::{Address, Gpu, Launch, Memory, Tensor};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

#[repr(C)]
#[derive(Clone, Copy)]
struct NormArgs {
    x: Address,
    weight: Address,
    row_len: u32,
    eps: f32,
}

/// `x * rsqrt(mean(x²) + eps) * weight`, in place, for each row of `x` `[num_rows, weight.len()]`.
///
/// # Panics
///
/// If the widths differ.
pub fn rms_norm(gpu: &Gpu, x: &mut Tensor, weight: &Memory<f32>, eps: f32) {
    assert_eq!(x.cols(), weight.len(), "width of x and length of the weight");
    let args = NormArgs { x: x.act(), weight: weight.address(), row_len: weight.len() as u32, eps };
    launch(gpu, x.num_rows(), args);
}

/// `x * rsqrt(mean(x²) + eps)`, in place, for each `row_len` numbers of `x`: the norm of query heads.
///
/// # Panics
///
/// If `x` is not made of whole heads.
pub fn rms_norm_unweighted(gpu: &Gpu, x: &mut Tensor, row_len: usize, eps: f32) {
    assert_eq!(x.cols() % row_len, 0, "width of x over heads of {row_len}");
    let args = NormArgs { x: x.act(), weight: 0, row_len: row_len as u32, eps };
    launch(gpu, x.num_rows() * (x.cols() / row_len), args);
}

fn launch(gpu: &Gpu, num_rows: usize, args: NormArgs) {
    let launch =
        Launch { kernel: "rms_norm", grid: [num_rows as u32, 1, 1], block: 256, shared_bytes: 0 };
    // SAFETY: `x` holds `num_rows` rows of `row_len` activations, `weight` is null or holds one row.
    unsafe { gpu.launch(launch, &args) };
}
