//! Hyper-connections; see [`crate::hyper`].

use super::{Address, Elem, Format, Gpu, Launch, Memory, Tensor, Weights};
use crate::hyper::HyperParams;

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block, and of one of the head.
const THREADS: usize = 256;
const HEAD_THREADS: usize = 512;
/// Of the inner length.
const CHUNK: usize = 1024;
/// Rows of a block.
const TILE: usize = 8;
/// Channels of a block.
const SLICE: usize = THREADS * 8;
const STREAMS_MAX: usize = 8;
/// Rows from which on a warp computes three outputs, because there are blocks enough.
const MANY_ROWS: usize = 128;

/// Parameters of one sublayer's connections, or of the head's.
#[derive(Debug)]
pub struct HyperWeights<'a> {
    /// `[num_outputs, num_streams * hidden]` in `f32`; a sublayer has `num_streams * (2 + num_streams)` outputs, the
    /// head `num_streams`.
    pub function: &'a Weights,
    /// `[num_outputs]`
    pub base: &'a Memory<f32>,
    /// pre, post, comb for a sublayer; one number for the head.
    pub scale: &'a Memory<f32>,
}

/// What a sublayer's result is mixed with.
#[derive(Debug)]
pub struct HyperMix {
    /// `[num_rows, num_streams]`
    post: Tensor,
    /// `[num_rows, num_streams * num_streams]`, from stream j to stream k.
    comb: Tensor,
    /// `[num_rows, num_chunks * (num_outputs + 1)]`
    partial: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DotsArgs {
    streams: Address,
    function: Address,
    partial: Address,
    num_rows: u32,
    len: u32,
    num_outputs: u32,
    outputs_per_warp: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PreArgs {
    streams: Address,
    partial: Address,
    base: Address,
    scale: Address,
    post: Address,
    comb: Address,
    x: Address,
    n: u32,
    hidden: u32,
    num_chunks: u32,
    sinkhorn_iters: u32,
    hc_eps: f32,
    norm_eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PostArgs {
    y: Address,
    post: Address,
    comb: Address,
    streams: Address,
    n: u32,
    hidden: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct HeadArgs {
    streams: Address,
    function: Address,
    base: Address,
    scale: Address,
    x: Address,
    n: u32,
    hidden: u32,
    hc_eps: f32,
    norm_eps: f32,
}

// === impl HyperMix ===

impl HyperMix {
    /// Of no rows.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let empty = || Tensor::new(gpu, Elem::F32, 1);
        Self { post: empty(), comb: empty(), partial: empty() }
    }
}

// === impl HyperWeights ===

impl HyperWeights<'_> {
    /// The width of a stream.
    fn check(&self, streams: &Tensor, n: usize, [num_outputs, num_scales]: [usize; 2]) -> usize {
        assert!((1..=STREAMS_MAX).contains(&n), "{n} streams, of {STREAMS_MAX} at most");
        assert_eq!(self.function.format(), Format::F32, "format of the function");
        assert_eq!(self.function.rows(), num_outputs, "outputs of the function");
        assert_eq!(self.function.cols(), streams.cols(), "inputs of the function");
        assert_eq!(self.base.len(), num_outputs, "length of the base");
        assert_eq!(self.scale.len(), num_scales, "length of the scale");
        assert_eq!(streams.cols() % n, 0, "width of {n} streams");
        streams.cols() / n
    }
}

/// Collapses `streams` `[num_rows, num_streams * hidden]` into a sublayer's input `x` `[num_rows, hidden]`; the mix keeps
/// what [`hyper_post`] needs.
///
/// # Panics
///
/// If the parameters' shapes do not fit.
pub fn hyper_pre(
    gpu: &Gpu,
    weights: &HyperWeights<'_>,
    params: &HyperParams,
    (streams, mix, x): (&Tensor, &mut HyperMix, &mut Tensor),
) {
    let n = params.num_streams;
    let num_outputs = n * (2 + n);
    let hidden = weights.check(streams, n, [num_outputs, 3]);
    let num_rows = streams.num_rows();
    let num_chunks = streams.cols().div_ceil(CHUNK);
    mix.post.shape(Elem::F32, num_rows, n);
    mix.comb.shape(Elem::F32, num_rows, n * n);
    mix.partial.shape(Elem::F32, num_rows, num_chunks * (num_outputs + 1));
    x.shape(gpu.act(), num_rows, hidden);
    dots(gpu, weights, streams, &mut mix.partial);
    let args = PreArgs {
        streams: streams.act(),
        partial: mix.partial.f32(),
        base: weights.base.address(),
        scale: weights.scale.address(),
        post: mix.post.f32(),
        comb: mix.comb.f32(),
        x: x.act(),
        n: n as u32,
        hidden: hidden as u32,
        num_chunks: num_chunks as u32,
        sinkhorn_iters: params.sinkhorn_iters.max(1) as u32,
        hc_eps: params.hc_eps,
        norm_eps: params.norm_eps,
    };
    let grid = [num_rows as u32, hidden.div_ceil(SLICE) as u32 + 1, 1];
    let launch = Launch { kernel: "hyper_pre", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: all tensors were given `num_rows` rows of the kernel's shapes; base and scale were checked.
    unsafe { gpu.launch(launch, &args) };
}

/// Sums of `function * streams` and of the squares of `streams`, by chunks.
fn dots(gpu: &Gpu, weights: &HyperWeights<'_>, streams: &Tensor, partial: &mut Tensor) {
    let (num_rows, num_outputs) = (streams.num_rows(), weights.function.rows());
    let outputs_per_warp = if num_rows < MANY_ROWS { 1 } else { 3 };
    let num_groups = match outputs_per_warp {
        1 => num_outputs.div_ceil(THREADS / 32),
        _ => 1,
    };
    let args = DotsArgs {
        streams: streams.act(),
        function: weights.function.codes().address(),
        partial: partial.f32(),
        num_rows: num_rows as u32,
        len: streams.cols() as u32,
        num_outputs: num_outputs as u32,
        outputs_per_warp,
    };
    let (tiles, chunks) = (num_rows.div_ceil(TILE), streams.cols().div_ceil(CHUNK));
    let grid = [tiles as u32, chunks as u32, num_groups as u32];
    let launch = Launch { kernel: "hyper_dots", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: the function has `num_outputs` rows as long as the streams', `partial` was given its shape.
    unsafe { gpu.launch(launch, &args) };
}

/// Spreads a sublayer's output `y` `[num_rows, hidden]` over `streams` `[num_rows, num_streams * hidden]`, in place.
///
/// # Panics
///
/// If `mix` is of another number of rows or streams.
pub fn hyper_post(gpu: &Gpu, y: &Tensor, mix: &HyperMix, streams: &mut Tensor) {
    let (num_rows, n, hidden) = (y.num_rows(), mix.post.cols(), y.cols());
    assert_eq!(streams.num_rows(), num_rows, "rows of the streams");
    assert_eq!(mix.post.num_rows(), num_rows, "rows of the mix");
    assert_eq!(streams.cols(), n * hidden, "width of {n} streams");
    let args = PostArgs {
        y: y.act(),
        post: mix.post.f32(),
        comb: mix.comb.f32(),
        streams: streams.act(),
        n: n as u32,
        hidden: hidden as u32,
    };
    let grid = [num_rows as u32, hidden.div_ceil(SLICE) as u32, 1];
    let launch = Launch { kernel: "hyper_post", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: all tensors have `num_rows` rows, of the widths that were checked.
    unsafe { gpu.launch(launch, &args) };
}

/// Collapses `streams` `[num_rows, num_streams * hidden]` for the head, into `x` `[num_rows, hidden]`.
///
/// # Panics
///
/// If the parameters' shapes do not fit.
pub fn hyper_head(
    gpu: &Gpu,
    weights: &HyperWeights<'_>,
    params: &HyperParams,
    streams: &Tensor,
    x: &mut Tensor,
) {
    let n = params.num_streams;
    let hidden = weights.check(streams, n, [n, 1]);
    x.shape(gpu.act(), streams.num_rows(), hidden);
    let args = HeadArgs {
        streams: streams.act(),
        function: weights.function.codes().address(),
        base: weights.base.address(),
        scale: weights.scale.address(),
        x: x.act(),
        n: n as u32,
        hidden: hidden as u32,
        hc_eps: params.hc_eps,
        norm_eps: params.norm_eps,
    };
    let grid = [streams.num_rows() as u32, 1, 1];
    let launch = Launch { kernel: "hyper_head", grid, block: HEAD_THREADS as u32, shared_bytes: 0 };
    // SAFETY: the parameters were checked, and `x` was given its shape.
    unsafe { gpu.launch(launch, &args) };
}
