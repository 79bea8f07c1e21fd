//! Rows of the embedding, and of other tensors.

use super::{Address, Format, Gpu, Launch, Memory, Tensor, Weights};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

/// Threads of a block.
const THREADS: usize = 256;
/// Channels of a thread.
const VECTOR: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedArgs {
    table: Address,
    ids: Address,
    streams: Address,
    vocab: u32,
    hidden: u32,
    num_streams: u32,
    is_f32: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TakeRowsArgs {
    x: Address,
    rows: Address,
    out: Address,
    num_rows: u32,
    row_bytes: u32,
}

/// `streams[row] =` the row of `table` `[vocab, hidden]` (`f32` or bf16) that `ids[row]` names, once per stream:
/// `[num_rows, num_streams * hidden]`.
///
/// # Panics
///
/// If there are fewer ids than rows, or the table is quantised.
pub fn embed(
    gpu: &Gpu,
    table: &Weights,
    ids: &Memory<u32>,
    (num_rows, num_streams): (usize, usize),
    streams: &mut Tensor,
) {
    let hidden = table.cols();
    assert!(num_rows <= ids.len(), "{num_rows} rows of {} ids", ids.len());
    let is_plain = matches!(table.format(), Format::F32 | Format::Bf16);
    assert!(is_plain, "an embedding in {:?}", table.format());
    streams.shape(gpu.act(), num_rows, num_streams * hidden);
    let args = EmbedArgs {
        table: table.codes().address(),
        ids: ids.address(),
        streams: streams.act(),
        vocab: table.rows() as u32,
        hidden: hidden as u32,
        num_streams: num_streams as u32,
        is_f32: u32::from(table.format() == Format::F32),
    };
    let grid = [num_rows as u32, hidden.div_ceil(THREADS * VECTOR) as u32, 1];
    let launch = Launch { kernel: "embed", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: the table is of the shape and type named, `streams` was given its shape, and ids are clamped.
    unsafe { gpu.launch(launch, &args) };
}

/// `out[i] = x[rows[i]]`, for the first `num_rows` of `rows`.
///
/// # Panics
///
/// If there are fewer, or `x` has no row to take.
pub fn take_rows(gpu: &Gpu, x: &Tensor, rows: &Memory<u32>, num_rows: usize, out: &mut Tensor) {
    assert!(num_rows <= rows.len(), "{num_rows} of {} rows", rows.len());
    assert!(num_rows == 0 || x.num_rows() > 0, "rows of an empty tensor");
    out.shape(x.elem(), num_rows, x.cols());
    let row_bytes = x.cols() * x.elem().num_bytes();
    let args = TakeRowsArgs {
        x: x.address(),
        rows: rows.address(),
        out: out.address(),
        num_rows: x.num_rows() as u32,
        row_bytes: row_bytes as u32,
    };
    let grid = [num_rows as u32, row_bytes.div_ceil(THREADS * 16) as u32, 1];
    let launch = Launch { kernel: "take_rows", grid, block: THREADS as u32, shared_bytes: 0 };
    // SAFETY: both tensors have rows of `row_bytes`, and row numbers are clamped.
    unsafe { gpu.launch(launch, &args) };
}
