//! Times every kernel; see [`crate::bench::kernels`].

use switchyard_kernels::cuda::{Elem, Error, Format, Gpu, Memory, Tensor, Weights};
use tokio::time::Instant;

use crate::backend::device::measure::copy_device;
use crate::bench::kernels::{Ceilings, Event, Measured, Options, Report, Shape};
use crate::weights::random;

mod attention;
mod exchange;
mod products;
mod rows;

/// Runs before the clock does.
const NUM_WARM_UPS: usize = 2;
/// Runs of a row, whatever they take.
const NUM_RUNS_MAX: f64 = 1000.0;
/// Bytes of numbers, before they repeat.
const NOISE_LEN: usize = 1 << 20;

/// Measures on `gpu`, in bf16, until it fails.
pub(crate) fn run(
    gpu: &Gpu,
    name: &str,
    options: &Options,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Report, Error> {
    let ceilings = Ceilings::new(name, copy_device(gpu, options.copy_bytes));
    observe(Event::Ceilings(&ceilings));
    let mut rows = Vec::new();
    let mut observe = |row: Measured| {
        observe(Event::Row(&ceilings, &row));
        rows.push(row);
    };
    for shape in &options.models {
        let mut bench = Bench { gpu, options, shape, observe: &mut observe };
        bench.products();
        bench.attention();
        bench.rows();
        bench.exchange();
    }
    match gpu.fault() {
        Some(fault) => Err(fault),
        None => Ok(Report { ceilings, rows }),
    }
}

/// The kernels at one model's shapes.
struct Bench<'a> {
    gpu: &'a Gpu,
    options: &'a Options,
    shape: &'a Shape,
    observe: &'a mut dyn FnMut(Measured),
}

/// What a run must do.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    num_bytes: usize,
    num_flops: usize,
}

impl Bench<'_> {
    /// The row's name, unless it is not asked for.
    fn wanted(&self, op: &str, shape: &str) -> Option<(String, String)> {
        let shape = format!("{} {shape}", self.shape.name);
        let filter = &self.options.filter;
        let wanted = op.contains(filter.as_str()) || shape.contains(filter.as_str());
        wanted.then(|| (op.to_owned(), shape))
    }

    /// Times `run`, which gets the number of the run, and reports it.
    fn time(&mut self, (op, shape): (String, String), work: Work, mut run: impl FnMut(usize)) {
        let gpu = self.gpu;
        (0..NUM_WARM_UPS).for_each(&mut run);
        gpu.synchronize();
        let mut timed = |num_runs: usize| {
            let start = Instant::now();
            (0..num_runs).for_each(&mut run);
            gpu.synchronize();
            start.elapsed().as_secs_f64() / num_runs as f64
        };
        let first = timed(1);
        let num_runs = (self.options.row_seconds / first).clamp(1.0, NUM_RUNS_MAX) as usize;
        let seconds = timed(num_runs);
        if gpu.fault().is_none() {
            let (num_bytes, num_flops) = (work.num_bytes as f64, work.num_flops as f64);
            (self.observe)(Measured { op, shape, seconds, num_bytes, num_flops });
        }
    }

    /// Activations, small and random, `[num_rows, cols]`.
    fn activations(&self, num_rows: usize, cols: usize) -> Tensor {
        self.numbers(self.gpu.act(), num_rows, cols)
    }

    fn numbers(&self, elem: Elem, num_rows: usize, cols: usize) -> Tensor {
        let mut state = 5;
        let noise: Vec<f32> = std::iter::repeat_with(|| (random(&mut state) >> 40) as f32)
            .map(|x| x / (1 << 23) as f32 - 1.0)
            .take(NOISE_LEN.min(num_rows * cols).max(1))
            .collect();
        let data: Vec<f32> = noise.iter().copied().cycle().take(num_rows * cols).collect();
        Tensor::upload(self.gpu, elem, &data, cols)
    }

    fn floats(&self, len: usize, value: f32) -> Memory<f32> {
        self.gpu.upload(&vec![value; len])
    }

    /// Matrices of a format: as many as are more than a cache holds.
    fn rotated(&self, format: Format, shape: [usize; 2]) -> Vec<Weights> {
        let (num_bytes, source) = self.bytes_of(format, shape);
        let num = self.options.rotated_bytes.div_ceil(num_bytes).max(1);
        (0..num).map(|_| source.upload(self.gpu)).collect()
    }

    /// The size of a random matrix, and its bytes.
    fn bytes_of(&self, format: Format, shape: [usize; 2]) -> (usize, Bytes) {
        let bytes = Bytes::new(format, shape);
        (bytes.codes.len() + bytes.scales.len(), bytes)
    }
}

/// A random matrix on the host.
struct Bytes {
    format: Format,
    shape: [usize; 2],
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Bytes {
    fn new(format: Format, [rows, cols]: [usize; 2]) -> Self {
        let (row_bytes, num_scales) = match format {
            Format::F32 => (4 * cols, 0),
            Format::Bf16 => (2 * cols, 0),
            Format::Fp8 => (cols, rows.div_ceil(128) * cols.div_ceil(128)),
            Format::Fp4 => (cols / 2, rows * (cols / 32)),
        };
        let mut state = 3;
        // Without the upper half of the exponents all are finite, whatever the format.
        let noise: Vec<u8> = std::iter::repeat_with(|| random(&mut state).to_le_bytes())
            .flatten()
            .map(|code| code & 0xbf)
            .take(NOISE_LEN + 4)
            .collect();
        let codes = noise.iter().copied().cycle().take(rows * row_bytes).collect();
        Self { format, shape: [rows, cols], codes, scales: vec![120; num_scales] }
    }

    fn upload(&self, gpu: &Gpu) -> Weights {
        Weights::upload(gpu, self.format, self.shape, &self.codes, &self.scales)
    }
}
