//! Kernels alone, on one thread: bytes of weights per second in decode shapes, floating-point operations per second in prefill
//! shapes (criterion's "elements" are operations), for every instruction set of the machine.
//!
//! `cargo bench -p switchyard-benches --bench kernels [-- FILTER]`

#![expect(clippy::expect_used, reason = "a bench whose shapes do not fit should stop")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use switchyard_kernels::attention::{KeyRows, Probabilities, SparseAttention, sparse_attention};
use switchyard_kernels::hadamard::hadamard;
use switchyard_kernels::indexer::{IndexerQuery, indexer_scores};
use switchyard_kernels::matmul::{WeightData, WeightMatrix, matmul};
use switchyard_kernels::norm::rms_norm;
use switchyard_kernels::quant::{fp4_round_trip, fp8_round_trip};
use switchyard_kernels::swiglu::{Swiglu, swiglu};
use switchyard_kernels::{Cpu, Isa};

/// Weights that a decode bench walks through: more than any cache holds.
const DECODE_BYTES: usize = 256 << 20;

/// Columns and rows of the decode and prefill shapes.
const COLS: usize = 4096;
const ROWS: usize = 2048;

const FORMATS: [&str; 4] = ["f32", "bf16", "fp8", "fp4"];

fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(Cpu::single_threaded).collect()
}

/// Numbers between -1 and 1 without a pattern that matters.
fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2048) as f32 / 1024.0 - 1.0).collect()
}

/// Bytes that are valid in every format: small finite numbers, scales near one.
struct Weights {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    fn new(num_bytes: usize) -> Self {
        Self {
            codes: (0..num_bytes).map(|i| ((i * 37) % 61 + 32) as u8).collect(),
            scales: vec![120; num_bytes / 8],
        }
    }

    /// Matrix number `i` of those that fit.
    fn matrix(&self, format: &str, i: usize) -> WeightMatrix<'_> {
        let bits = match format {
            "f32" => 32,
            "bf16" => 16,
            "fp8" => 8,
            _ => 4,
        };
        let size = ROWS * COLS * bits / 8;
        let start = i % (self.codes.len() / size) * size;
        let codes = &self.codes[start..start + size];
        let data = match format {
            "f32" => WeightData::F32(codes),
            "bf16" => WeightData::Bf16(codes),
            "fp8" => WeightData::Fp8 { codes, scales: &self.scales[..ROWS * COLS / 128 / 128] },
            _ => WeightData::Fp4 { codes, scales: &self.scales[..ROWS * COLS / 32] },
        };
        WeightMatrix::new(ROWS, COLS, data).expect("lengths fit the shape")
    }
}

/// What memory gives to a loop that only reads.
fn plain_read(c: &mut Criterion) {
    let data = vec![1_u64; DECODE_BYTES / 8];
    let mut group = c.benchmark_group("plain_read");
    group.throughput(Throughput::Bytes(DECODE_BYTES as u64));
    group.bench_function("u64_sum", |b| {
        b.iter(|| black_box(&data).iter().fold(0_u64, |sum, x| sum.wrapping_add(*x)));
    });
}

fn matmul_decode(c: &mut Criterion) {
    let weights = Weights::new(DECODE_BYTES);
    let x = ramp(COLS);
    let mut y = vec![0.0; ROWS];
    let mut group = c.benchmark_group("matmul_decode");
    for format in FORMATS {
        group.throughput(Throughput::Bytes(weights.matrix(format, 0).num_bytes() as u64));
        for cpu in cpus() {
            let mut i = 0;
            group.bench_function(BenchmarkId::new(format, cpu.isa().name()), |b| {
                b.iter(|| {
                    i += 1;
                    matmul(&cpu, &x, &weights.matrix(format, i), &mut y);
                });
            });
        }
    }
}

fn matmul_prefill(c: &mut Criterion) {
    let weights = Weights::new(ROWS * COLS * 4);
    let mut group = c.benchmark_group("matmul_prefill");
    for num_tokens in [4, 16, 256] {
        let x = ramp(num_tokens * COLS);
        let mut y = vec![0.0; num_tokens * ROWS];
        group.throughput(Throughput::Elements((2 * num_tokens * ROWS * COLS) as u64));
        for format in FORMATS {
            for cpu in cpus() {
                let id = BenchmarkId::new(format!("{format}_{num_tokens}"), cpu.isa().name());
                group.bench_function(id, |b| {
                    b.iter(|| matmul(&cpu, &x, &weights.matrix(format, 0), &mut y));
                });
            }
        }
    }
}

fn attention(c: &mut Criterion) {
    let (num_heads, head_dim, num_keys) = (64, 512, 640);
    let (q, keys) = (ramp(num_heads * head_dim), ramp(num_keys * head_dim));
    let sink = ramp(num_heads);
    let rows: Vec<&[f32]> = keys.chunks(head_dim).collect();
    let mut out = vec![0.0; q.len()];
    let mut group = c.benchmark_group("sparse_attention");
    group.throughput(Throughput::Elements((4 * num_heads * head_dim * num_keys) as u64));
    for cpu in cpus() {
        group.bench_function(cpu.isa().name(), |b| {
            let args = SparseAttention {
                q: &q,
                sink: &sink,
                keys: KeyRows::F32(&rows),
                softmax_scale: 0.044,
                probabilities: Probabilities::Exact,
            };
            b.iter(|| sparse_attention(&cpu, &args, &mut out));
        });
    }
}

fn indexer(c: &mut Criterion) {
    let (num_heads, head_dim, num_keys) = (64, 128, 4096);
    let (q, keys) = (ramp(num_heads * head_dim), ramp(num_keys * head_dim));
    let rows: Vec<&[f32]> = keys.chunks(head_dim).collect();
    let weights = ramp(num_heads);
    let mut scores = vec![0.0; num_keys];
    let mut group = c.benchmark_group("indexer_scores");
    group.throughput(Throughput::Elements((2 * num_heads * head_dim * num_keys) as u64));
    for cpu in cpus() {
        group.bench_function(cpu.isa().name(), |b| {
            let query = IndexerQuery { q: &q, weights: &weights };
            b.iter(|| indexer_scores(&cpu, &query, KeyRows::F32(&rows), &mut scores));
        });
    }
}

/// Ops that touch each number once; elements are numbers.
fn elementwise(c: &mut Criterion) {
    let len = 16 * 4096;
    let (gate, up, weight) = (ramp(len), ramp(len), ramp(4096));
    let mut x = ramp(len);
    let mut group = c.benchmark_group("elementwise");
    group.throughput(Throughput::Elements(len as u64));
    for cpu in cpus() {
        let isa = cpu.isa().name();
        group.bench_function(BenchmarkId::new("rms_norm", isa), |b| {
            b.iter(|| rms_norm(&cpu, &mut x, &weight, 1e-6));
        });
        group.bench_function(BenchmarkId::new("hadamard_128", isa), |b| {
            b.iter(|| hadamard(&cpu, &mut x, 128));
        });
        group.bench_function(BenchmarkId::new("fp8_round_trip", isa), |b| {
            b.iter(|| fp8_round_trip(&cpu, &mut x, 128));
        });
        group.bench_function(BenchmarkId::new("fp4_round_trip", isa), |b| {
            b.iter(|| fp4_round_trip(&cpu, &mut x));
        });
        group.bench_function(BenchmarkId::new("swiglu", isa), |b| {
            let args = Swiglu { gate: &gate, up: &up, limit: 10.0, routing_weights: None };
            b.iter(|| swiglu(&cpu, &args, &mut x));
        });
    }
}

criterion_group!(
    benches,
    plain_read,
    matmul_decode,
    matmul_prefill,
    attention,
    indexer,
    elementwise
);
criterion_main!(benches);
