use super::*;
use crate::cuda::testing::{cpu, gpu, upload};
use crate::hadamard::hadamard;
use crate::quant::{fp4_round_trip, round_bf16};
use crate::testing::{assert_bits, noise};
use crate::{Cpu, quant};

fn fp8(cpu: &Cpu, x: &mut [f32], row_len: usize, [num_channels, block]: [usize; 2]) {
    for row in x.chunks_mut(row_len) {
        quant::fp8_round_trip(cpu, &mut row[..num_channels], block);
    }
    round_bf16(cpu, x);
}

/// Noise with rows of zeros, tiny and huge numbers, and a NaN.
fn mixed(num_rows: usize, cols: usize) -> Vec<f32> {
    let mut x = noise(1, num_rows * cols);
    for (row, x) in x.chunks_mut(cols).enumerate() {
        let factor = [1.0, 0.0, 1e-6, 1e30, 17.0][row % 5];
        x.iter_mut().for_each(|x| *x *= factor);
    }
    x[cols / 2] = f32::NAN;
    x
}

#[test]
fn e4m3_round_trips_are_the_cpus() {
    let (cpu, gpu) = (cpu(), gpu(Variant::Official));
    for (num_rows, cols, block) in [
        (1, 1, 128),
        (7, 384, 128),
        (5, 200, 128),
        (6, 192, 64),
        (5, 75, 128),
        (5, 90, 30),
        (0, 8, 8),
    ] {
        let (x, mut expected) = match num_rows {
            0 => upload(&gpu, &[], cols),
            _ => upload(&gpu, &mixed(num_rows, cols), cols),
        };
        fp8(&cpu, &mut expected, cols, [cols, block]);
        let mut out = Tensor::new(&gpu, gpu.act(), 1);
        fp8_round_trip(&gpu, &x, block, &mut out);
        assert_eq!((out.num_rows(), out.cols()), (num_rows, cols));
        assert_numbers(&out.download(), &expected);
    }
}

#[test]
fn the_tails_of_kv_rows_stay() {
    let (cpu, gpu) = (cpu(), gpu(Variant::Official));
    for (num_rows, cols, num_channels) in [(5, 512, 448), (5, 96, 80), (3, 33, 20)] {
        let (mut x, mut expected) = upload(&gpu, &mixed(num_rows, cols), cols);
        fp8(&cpu, &mut expected, cols, [num_channels, 64]);
        fp8_round_trip_head(&gpu, &mut x, num_channels, 64);
        assert_numbers(&x.download(), &expected);
    }
}

#[test]
fn index_rows_are_the_cpus() {
    let (cpu, gpu) = (cpu(), gpu(Variant::Official));
    for (num_rows, heads, head_dim) in [
        (3, 3, 128),
        (2, 5, 16),
        (1, 1, 32),
        (3, 1, 64),
        (2, 1, 256),
        (1, 3, 512),
        (2, 1, 1024),
        (3, 1, 2),
    ] {
        let (mut x, mut expected) =
            upload(&gpu, &noise(2, num_rows * heads * head_dim), heads * head_dim);
        quantize_index(&gpu, &mut x, head_dim);
        hadamard(&cpu, &mut expected, head_dim);
        round_bf16(&cpu, &mut expected);
        expected.chunks_mut(head_dim).for_each(|head| fp4_round_trip(&cpu, head));
        round_bf16(&cpu, &mut expected);
        assert_bits(&x.download(), &expected, "index rows");
    }
}

/// Equality to the bit but for the bits of NaN.
fn assert_numbers(actual: &[f32], expected: &[f32]) {
    let tidy = |x: &[f32]| -> Vec<f32> {
        x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }).collect()
    };
    assert_bits(&tidy(actual), &tidy(expected), "e4m3");
}
