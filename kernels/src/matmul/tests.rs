use std::num::NonZeroUsize;

use super::*;
use crate::quant::{self, e2m1_to_f32, e4m3_to_f32, fp8_round_trip, round_bf16, ue8m0_to_f32};
use crate::testing::{Goldens, assert_bits, assert_close, bits, cpus, noise, noise_bytes};
use crate::{Cpu, Isa};
use proptest::prelude::*;

/// Bytes of a random matrix.
#[derive(Clone, Debug)]
struct Bytes {
    rows: usize,
    cols: usize,
    format: Name,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    F32,
    Bf16,
    Fp8,
    Fp4,
}

const FORMATS: [Name; 4] = [Name::F32, Name::Bf16, Name::Fp8, Name::Fp4];

impl Bytes {
    fn random(format: Name, rows: usize, cols: usize, seed: u32) -> Self {
        let values = noise(seed, rows * cols);
        let scale_codes = |len| -> Vec<u8> {
            noise_bytes(seed ^ 7, len).into_iter().map(|b| 117 + b % 12).collect()
        };
        let (codes, scales) = match format {
            Name::F32 => (values.iter().flat_map(|x| x.to_le_bytes()).collect(), vec![]),
            Name::Bf16 => {
                let bytes = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
                (values.iter().flat_map(bytes).collect(), vec![])
            }
            Name::Fp8 => {
                let no_nan = |b: u8| if b & 0x7f == 0x7f { 0 } else { b };
                let codes = noise_bytes(seed, rows * cols).into_iter().map(no_nan).collect();
                (codes, scale_codes(rows.div_ceil(128) * cols.div_ceil(128)))
            }
            Name::Fp4 => {
                (noise_bytes(seed, rows * cols / 2), scale_codes(rows * cols.div_ceil(32)))
            }
        };
        Self { rows, cols, format, codes, scales }
    }

    fn matrix(&self) -> WeightMatrix<'_> {
        let (codes, scales) = (&self.codes[..], &self.scales[..]);
        let data = match self.format {
            Name::F32 => WeightData::F32(codes),
            Name::Bf16 => WeightData::Bf16(codes),
            Name::Fp8 => WeightData::Fp8 { codes, scales },
            Name::Fp4 => WeightData::Fp4 { codes, scales },
        };
        WeightMatrix::new(self.rows, self.cols, data).unwrap()
    }

    /// The plain reading of the format.
    fn element(&self, row: usize, col: usize) -> f32 {
        let i = row * self.cols + col;
        match self.format {
            Name::F32 => f32::from_le_bytes(self.codes[4 * i..4 * i + 4].try_into().unwrap()),
            Name::Bf16 => {
                half::bf16::from_le_bytes(self.codes[2 * i..2 * i + 2].try_into().unwrap()).to_f32()
            }
            Name::Fp8 => {
                let scale = self.scales[row / 128 * self.cols.div_ceil(128) + col / 128];
                e4m3_to_f32(self.codes[i]) * ue8m0_to_f32(scale)
            }
            Name::Fp4 => {
                let scale = self.scales[row * self.cols.div_ceil(32) + col / 32];
                e2m1_to_f32(self.codes[i / 2] >> (4 * (i % 2))) * ue8m0_to_f32(scale)
            }
        }
    }
}

/// The canonical reduction, in the plainest words.
fn reference(x: &[f32], w: &Bytes) -> Vec<f32> {
    let dot = |x: &[f32], row: usize| {
        let mut lanes = [0.0_f32; 16];
        for k in 0..w.cols.next_multiple_of(16) {
            let (a, b) = if k < w.cols { (x[k], w.element(row, k)) } else { (0.0, 0.0) };
            lanes[k % 16] = a.mul_add(b, lanes[k % 16]);
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    };
    x.chunks(w.cols).flat_map(|x| (0..w.rows).map(move |row| dot(x, row))).collect()
}

fn check(format: Name, num_tokens: usize, rows: usize, cols: usize) {
    let weights = Bytes::random(format, rows, cols, 3);
    let x = noise(4, num_tokens * cols);
    let expected = reference(&x, &weights);
    for cpu in cpus() {
        let mut y = vec![f32::NAN; num_tokens * rows];
        matmul(&cpu, &x, &weights.matrix(), &mut y);
        assert_bits(&y, &expected, &format!("{cpu:?} {format:?} {num_tokens}x{rows}x{cols}"));
    }
}

#[test]
fn products_are_the_canonical_reduction() {
    for format in FORMATS {
        for num_tokens in [1, 2, 3, 4, 5, 7, 50, 101] {
            check(format, num_tokens, 21, 160);
        }
        check(format, 1, 150, 1184);
        check(format, 6, 33, 1184);
        check(format, 1, 1, 2);
        check(format, 5, 9, 46);
    }
}

#[test]
fn widened_rows_match_the_goldens() {
    let goldens = Goldens::open();
    let fp8 =
        WeightData::Fp8 { codes: goldens.bytes("lin8.w"), scales: goldens.bytes("lin8.scale") };
    let fp4 =
        WeightData::Fp4 { codes: goldens.bytes("lin4.w"), scales: goldens.bytes("lin4.scale") };
    for cpu in cpus() {
        for (data, name) in [(fp8, "lin8.w_deq"), (fp4, "lin4.w_deq")] {
            let weights = WeightMatrix::new(128, 256, data).unwrap();
            let mut widened = vec![0.0; 128 * 256];
            for (row, out) in widened.chunks_mut(256).enumerate() {
                weights.widen_row(&cpu, row, out);
            }
            assert_bits(&widened, &goldens.floats(name), name);
        }
    }
}

#[test]
fn every_fp8_code_widens_exactly_at_every_scale() {
    let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
    for scale in [0, 1, 10, 100, 127, 140, 200, 246] {
        let data = WeightData::Fp8 { codes: &codes, scales: &[scale, scale] };
        let weights = WeightMatrix::new(1, codes.len(), data).unwrap();
        let expected: Vec<f32> =
            codes.iter().map(|&code| e4m3_to_f32(code) * ue8m0_to_f32(scale)).collect();
        for cpu in cpus() {
            let mut widened = vec![0.0; codes.len()];
            weights.widen_row(&cpu, 0, &mut widened);
            assert_bits(&widened, &expected, &format!("{cpu:?}, scale {scale}"));
        }
    }
}

#[test]
fn official_products_match_the_goldens() {
    let goldens = Goldens::open();
    let fp8 =
        WeightData::Fp8 { codes: goldens.bytes("lin8.w"), scales: goldens.bytes("lin8.scale") };
    let fp4 =
        WeightData::Fp4 { codes: goldens.bytes("lin4.w"), scales: goldens.bytes("lin4.scale") };
    for cpu in cpus() {
        for (data, name) in [(fp8, "lin8.y_bf16"), (fp4, "lin4.y_bf16")] {
            let mut x = goldens.floats("lin8.x");
            fp8_round_trip(&cpu, &mut x, quant::ACTIVATION_BLOCK);
            let mut y = vec![0.0; 5 * 128];
            matmul(&cpu, &x, &WeightMatrix::new(128, 256, data).unwrap(), &mut y);
            round_bf16(&cpu, &mut y);
            // Another order of summation may round to the neighbouring bf16.
            assert_close(&y, &goldens.floats(name), 1.0 / 256.0, name);
            let same = y.iter().zip(goldens.floats(name)).filter(|(a, b)| **a == *b).count();
            assert!(same * 100 >= y.len() * 99, "{name}: only {same} of {} are equal", y.len());
        }
    }
}

#[test]
fn block_diagonal_products_are_products_of_slices() {
    // 200 rows: the third group spans two blocks of FP8 scales.
    let (groups, rows, cols, tokens) = (5, 40, 48, 4);
    for format in FORMATS {
        let weights = Bytes::random(format, groups * rows, cols, 5);
        let x = noise(6, tokens * groups * cols);
        for cpu in cpus() {
            let mut y = vec![0.0; tokens * groups * rows];
            matmul_block_diagonal(&cpu, &x, &weights.matrix(), groups, &mut y);
            for token in 0..tokens {
                for group in 0..groups {
                    let at = (token * groups + group) * cols;
                    let slice = weights.matrix().slice_rows(group * rows..(group + 1) * rows);
                    let mut expected = vec![0.0; rows];
                    matmul(&cpu, &x[at..at + cols], &slice, &mut expected);
                    let plain = &reference(&x[at..at + cols], &weights)[group * rows..][..rows];
                    assert_bits(&expected, plain, "slice");
                    let at = (token * groups + group) * rows;
                    assert_bits(&y[at..at + rows], &expected, "group");
                }
            }
        }
    }
}

#[test]
fn grouped_products_are_products_and_leave_other_rows_alone() {
    let experts = [Bytes::random(Name::Fp4, 24, 64, 1), Bytes::random(Name::Fp4, 24, 64, 2)];
    let x = noise(8, 6 * 64);
    let cpu = Cpu::single_threaded(Isa::detect());
    let groups = [(0..2, 0), (3..6, 1)].map(|(tokens, expert): (Range<usize>, usize)| TokenGroup {
        tokens,
        weights: experts[expert].matrix(),
    });
    let mut y = vec![7.0; 6 * 24];
    matmul_grouped(&cpu, &x, &groups, &mut y);
    assert_bits(&y[..2 * 24], &reference(&x[..2 * 64], &experts[0]), "first expert");
    assert_bits(&y[2 * 24..3 * 24], &[7.0; 24], "no expert");
    assert_bits(&y[3 * 24..], &reference(&x[3 * 64..], &experts[1]), "second expert");
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    let error = WeightMatrix::new(3, 4, WeightData::Bf16(&[0; 23])).unwrap_err();
    assert_eq!(error.to_string(), "weights of a [3, 4] bf16 matrix need 24 bytes, got 23");
    let data = WeightData::Fp8 { codes: &[0; 12], scales: &[] };
    let error = WeightMatrix::new(3, 4, data).unwrap_err();
    assert_eq!(error.to_string(), "scales of a [3, 4] fp8 matrix need 1 bytes, got 0");
    let data = WeightData::Fp8 { codes: &[0; 12], scales: &[255] };
    assert_eq!(WeightMatrix::new(3, 4, data).unwrap_err(), Error::Scale { block: 0, code: 255 });
    let data = WeightData::Fp4 { codes: &[0; 7], scales: &[0; 2] };
    assert_eq!(WeightMatrix::new(2, 7, data).unwrap_err(), Error::OddColumns { cols: 7 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn all_instruction_sets_threads_and_batches_agree(
        format in proptest::sample::select(&FORMATS[..]),
        num_tokens in 1_usize..60,
        rows in 1_usize..200,
        half_cols in 1_usize..300,
        seed: u32,
    ) {
        let cols = 2 * half_cols;
        let weights = Bytes::random(format, rows, cols, seed);
        let x = noise(seed, num_tokens * cols);
        let mut expected = vec![0.0; num_tokens * rows];
        matmul(&Cpu::single_threaded(Isa::PORTABLE), &x, &weights.matrix(), &mut expected);
        for isa in Isa::available() {
            for num_threads in [1, 3] {
                let cpu = Cpu::new(isa, NonZeroUsize::new(num_threads).unwrap()).unwrap();
                let mut y = vec![0.0; num_tokens * rows];
                matmul(&cpu, &x, &weights.matrix(), &mut y);
                prop_assert_eq!(bits(&y), bits(&expected), "{:?}", cpu);
                let mut y = vec![0.0; rows];
                matmul(&cpu, &x[..cols], &weights.matrix(), &mut y);
                prop_assert_eq!(bits(&y), bits(&expected[..rows]), "{:?}, one token", cpu);
            }
        }
    }
}
