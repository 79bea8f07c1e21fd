//! The experts' activation; see [`crate::swiglu`].

use super::{Address, Gpu, Launch, Memory, Tensor};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block.
const THREADS: usize = 256;
/// Channels of a thread.
const VECTOR: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct SwigluArgs {
    gate: Address,
    up: Address,
    weights: Address,
    width: u32,
    limit: f32,
}

/// `gate = silu(min(gate, limit)) * clamp(up, -limit, limit) * routing weight`; both are `[num_rows, width]`, the weights
/// `[num_rows]` at least. A limit of 0 is none.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn swiglu(
    gpu: &Gpu,
    gate: &mut Tensor,
    up: &Tensor,
    limit: f32,
    routing_weights: Option<&Memory<f32>>,
) {
    let (num_rows, width) = (gate.num_rows(), gate.cols());
    assert_eq!((up.num_rows(), up.cols()), (num_rows, width), "shape of the up projection");
    let num_weights = routing_weights.map_or(num_rows, Memory::len);
    assert!(num_weights >= num_rows, "{num_weights} routing weights of {num_rows} rows");
    let args = SwigluArgs {
        gate: gate.act(),
        up: up.act(),
        weights: routing_weights.map_or(0, Memory::address),
        width: width as u32,
        limit: if limit > 0.0 { limit } else { f32::INFINITY },
    };
    let grid = [num_rows as u32, width.div_ceil(THREADS * VECTOR) as u32, 1];
    let launch = Launch { kernel: "swiglu", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: both tensors are of the shape named, and there is a weight per row if there are any.
    unsafe { gpu.launch(launch, &args) };
}
