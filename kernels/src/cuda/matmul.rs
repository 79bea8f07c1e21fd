//! Products with the weights; see [`crate::matmul`].
//!
//! In official numerics they run on tensor cores where the shape allows, in exact numerics with plain multiplications. Either way a
//! row's result does not depend, to the bit, on what it is computed with; the sources say how.

use super::{Address, Elem, Format, Gpu, Launch, Memory, Tensor, Variant, Weights};

#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

#[repr(C)]
#[derive(Clone, Copy)]
struct MatmulArgs {
    x: Address,
    out: Address,
    codes: Address,
    scales: Address,
    table: Address,
    offsets: Address,
    num_tokens: u32,
    num_slots: u32,
    rows: u32,
    cols: u32,
    num_groups: u32,
    format: u32,
    out_is_f32: u32,
}

/// `out` `[num_tokens, weights.rows()]` of type `out_elem` is `x Wᵀ`, with `x` `[num_tokens, weights.cols()]` in activations, as they
/// are: quantising them is another op.
///
/// # Panics
///
/// If the widths differ.
pub fn matmul(gpu: &Gpu, x: &Tensor, weights: &Weights, out_elem: Elem, out: &mut Tensor) {
    out.shape(out_elem, x.num_rows(), weights.rows());
    let product = Product { x, weights, num_groups: 1 };
    product.run(gpu, &product.kernel(gpu), out);
}

/// The grouped output projection, [`crate::matmul::matmul_block_diagonal`]: `weights` is `[num_groups * rows, cols]`, `x`
/// `[num_tokens, num_groups * cols]` in activations, `out` becomes `[num_tokens, num_groups * rows]` in activations.
///
/// # Panics
///
/// If `weights.rows()` is no multiple of `num_groups`, or `x` has another width.
pub fn matmul_block_diagonal(
    gpu: &Gpu,
    x: &Tensor,
    weights: &Weights,
    num_groups: usize,
    out: &mut Tensor,
) {
    assert_eq!(weights.rows() % num_groups, 0, "rows of the weights over {num_groups} groups");
    out.shape(gpu.act(), x.num_rows(), weights.rows());
    let product = Product { x, weights, num_groups };
    product.run(gpu, &product.kernel(gpu), out);
}

/// One product with one matrix.
struct Product<'a> {
    /// `[num_tokens, num_groups * cols]`.
    x: &'a Tensor,
    /// `[num_groups * rows, cols]`.
    weights: &'a Weights,
    num_groups: usize,
}

impl Product<'_> {
    /// What computes it.
    fn kernel(&self, gpu: &Gpu) -> Kernel {
        let rows = self.weights.rows();
        match path(gpu, self.weights.format(), self.weights.cols()) {
            Path::Plain => plain(rows / self.num_groups),
            Path::Tensor(format) => tensor(format, Tokens::of_one_matrix(self.x.num_rows(), rows)),
        }
    }

    /// `out` is `[num_tokens, num_groups * rows]`.
    fn run(&self, gpu: &Gpu, kernel: &Kernel, out: &Tensor) {
        let &Self { x, weights, num_groups } = self;
        let (rows, cols) = (weights.rows() / num_groups, weights.cols());
        assert_eq!(x.cols(), num_groups * cols, "width of x and columns of the weights");
        let num_tokens = x.num_rows();
        let args = MatmulArgs {
            x: x.act(),
            out: out.address(),
            codes: weights.codes().address(),
            scales: weights.scales().address(),
            table: 0,
            offsets: 0,
            num_tokens: num_tokens as u32,
            num_slots: 1,
            rows: rows as u32,
            cols: cols as u32,
            num_groups: num_groups as u32,
            format: code_of(weights.format()),
            out_is_f32: u32::from(out.elem() == Elem::F32),
        };
        let launch = kernel.launch(num_tokens.div_ceil(kernel.tokens), rows, num_groups);
        // SAFETY: `x` is `[num_tokens, num_groups * cols]`, `out` `[num_tokens, num_groups * rows]`, the weights fit their format.
        unsafe { gpu.launch(launch, &args) };
    }
}

/// Products of sorted tokens, each with the matrix of its slot.
pub(super) struct Sorted<'a> {
    /// `[capacity, cols]`.
    pub(super) x: &'a Tensor,
    /// Codes' and scales' addresses of each slot.
    pub(super) table: &'a Memory<u64>,
    /// `[num_slots + 1]`.
    pub(super) offsets: &'a Memory<u32>,
    pub(super) format: Format,
    pub(super) rows: usize,
}

/// `out` is `[capacity, rows]` in activations.
pub(super) fn sorted_product(gpu: &Gpu, sorted: &Sorted<'_>, out: &Tensor) {
    let &Sorted { x, table, offsets, format, rows } = sorted;
    let (capacity, num_slots) = (x.num_rows(), table.len() / 2);
    let args = MatmulArgs {
        x: x.act(),
        out: out.address(),
        codes: 0,
        scales: 0,
        table: table.address(),
        offsets: offsets.address(),
        num_tokens: capacity as u32,
        num_slots: num_slots as u32,
        rows: rows as u32,
        cols: x.cols() as u32,
        num_groups: 1,
        format: code_of(format),
        out_is_f32: u32::from(out.elem() == Elem::F32),
    };
    let kernel = match path(gpu, format, x.cols()) {
        Path::Plain => plain(rows),
        Path::Tensor(format) => tensor(format, Tokens::of_slots(capacity, num_slots)),
    };
    // However the tokens are spread: every slot that has any can leave its last tile with a single one.
    let num_used = num_slots.min(capacity);
    let num_tiles = (capacity + num_used * (kernel.tokens - 1)) / kernel.tokens;
    // SAFETY: `x` is `[capacity, cols]`, `out` `[capacity, rows]`; each slot's matrix is `[rows, cols]` in `format`.
    unsafe { gpu.launch(kernel.launch(num_tiles, rows, 1), &args) };
}

/// `MatmulFormat`.
fn code_of(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::Bf16 => 1,
        Format::Fp8 => 2,
        Format::Fp4 => 3,
    }
}

/// Formats that tensor cores take.
#[derive(Clone, Copy, Debug)]
enum TensorFormat {
    Bf16,
    Fp8,
    Fp4,
}

enum Path {
    Plain,
    Tensor(TensorFormat),
}

/// What computes a product. Must not depend on the number of tokens: the two ways add in different orders.
fn path(gpu: &Gpu, format: Format, cols: usize) -> Path {
    // Sixteen bytes of codes, and sixteen of inputs, are read at once.
    let (format, run) = match format {
        Format::F32 => return Path::Plain,
        Format::Bf16 => (TensorFormat::Bf16, 8),
        Format::Fp8 => (TensorFormat::Fp8, 16),
        Format::Fp4 => (TensorFormat::Fp4, 32),
    };
    match gpu.variant() {
        Variant::Official if cols.is_multiple_of(run) => Path::Tensor(format),
        Variant::Official | Variant::Exact => Path::Plain,
    }
}

/// Nearly all multiprocessors of a large GPU.
const ENOUGH_BLOCKS: usize = 120;

/// Tokens of a block on tensor cores.
#[derive(Clone, Copy, Debug)]
enum Tokens {
    Of8,
    Of32,
    Of64,
    Of128,
}

impl Tokens {
    /// The largest tile that still leaves a block to most multiprocessors.
    fn of_one_matrix(num_tokens: usize, rows: usize) -> Self {
        let fills = |tokens, tile_rows| {
            num_tokens.div_ceil(tokens) * rows.div_ceil(tile_rows) >= ENOUGH_BLOCKS
        };
        match num_tokens {
            0..=8 => Self::Of8,
            9..=32 => Self::Of32,
            65.. if fills(128, 128) => Self::Of128,
            _ if fills(64, 128) => Self::Of64,
            _ => Self::Of32,
        }
    }

    /// By the tokens that a slot has on average if all of `capacity` are used.
    fn of_slots(capacity: usize, num_slots: usize) -> Self {
        match capacity {
            _ if capacity <= 3 * num_slots => Self::Of8,
            _ if capacity <= 20 * num_slots => Self::Of32,
            _ => Self::Of64,
        }
    }
}

/// A kernel and what one of its blocks does.
struct Kernel {
    name: &'static str,
    tokens: usize,
    rows: usize,
    block: u32,
    shared_bytes: u32,
}

impl Kernel {
    fn launch(&self, num_tiles: usize, rows: usize, num_groups: usize) -> Launch {
        let grid = [num_tiles as u32, rows.div_ceil(self.rows) as u32, num_groups as u32];
        Launch { kernel: self.name, grid, block: self.block, shared_bytes: self.shared_bytes }
    }
}

/// Matrices of fewer rows have a row to a block. Both kernels compute the same bits.
const SHORT_ROWS: usize = 512;

fn plain(rows: usize) -> Kernel {
    let (name, rows) = match rows {
        0..SHORT_ROWS => ("matmul_simt_short", 1),
        _ => ("matmul_simt", 4),
    };
    Kernel { name, tokens: 8, rows, block: 256, shared_bytes: 0 }
}

/// All compute the same bits.
fn tensor(format: TensorFormat, tokens: Tokens) -> Kernel {
    let pick = |[bf16, fp8, fp4]: [&'static str; 3]| match format {
        TensorFormat::Bf16 => bf16,
        TensorFormat::Fp8 => fp8,
        TensorFormat::Fp4 => fp4,
    };
    let kernel = |names, tokens, rows, block, shared_bytes| Kernel {
        name: pick(names),
        tokens,
        rows,
        block,
        shared_bytes,
    };
    // Three stages of 256 bytes a token.
    let staged = |tokens: usize| 3 * 256 * tokens as u32;
    match tokens {
        Tokens::Of8 => kernel(["matmul_8_bf16", "matmul_8_fp8", "matmul_8_fp4"], 8, 16, 256, 0),
        Tokens::Of32 => {
            kernel(["matmul_32_bf16", "matmul_32_fp8", "matmul_32_fp4"], 32, 32, 256, 0)
        }
        Tokens::Of64 => {
            let names = ["matmul_64_bf16", "matmul_64_fp8", "matmul_64_fp4"];
            kernel(names, 64, 128, 128, staged(64))
        }
        Tokens::Of128 => {
            let names = ["matmul_128_bf16", "matmul_128_fp8", "matmul_128_fp4"];
            kernel(names, 128, 128, 256, staged(128))
        }
    }
}
