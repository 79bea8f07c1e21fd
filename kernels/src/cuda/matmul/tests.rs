use super::*;
use crate::cuda::testing::{Matrix, cpu, gpus, upload};
use crate::matmul as on_cpu;
use crate::testing::{assert_bits, assert_close, noise};

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Fp8, Format::Fp4];

/// Compares a product with the CPU's, before rounding to `out_elem`.
#[track_caller]
fn check(gpu: &Gpu, num_tokens: usize, weights: &Matrix, out_elem: Elem) {
    let view = weights.view();
    let (x, x_host) = upload(gpu, &noise(9, num_tokens * view.cols()), view.cols());
    let mut expected = vec![0.0; num_tokens * view.rows()];
    on_cpu::matmul(&cpu(), &x_host, &view, &mut expected);
    let mut out = Tensor::new(gpu, gpu.act(), 0);
    matmul(gpu, &x, &weights.upload(gpu), out_elem, &mut out);
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    assert_eq!([out.num_rows(), out.cols()], [num_tokens, view.rows()]);
    let tolerance = match out_elem {
        Elem::F32 => 5e-5,
        Elem::Bf16 => 1.0 / 128.0,
    };
    let what = format!("{num_tokens} tokens, {weights}, {:?}", gpu.variant());
    assert_close(&out.download(), &expected, tolerance, &what);
}

#[test]
fn it_agrees_with_the_cpu() {
    let [exact, official] = gpus();
    for format in FORMATS {
        for (num_tokens, shape) in [(1, [1, 32]), (2, [24, 96]), (1, [5, 4096]), (9, [515, 64])] {
            for gpu in [&exact, &official] {
                check(gpu, num_tokens, &Matrix::random(format, shape, 1), Elem::F32);
            }
        }
    }
    for format in [Format::Bf16, Format::Fp8, Format::Fp4] {
        for (num_tokens, shape) in [
            (1, [40, 4096]),
            (2, [130, 1056]),
            (8, [17, 192]),
            (9, [130, 192]),
            (33, [24, 160]),
            (65, [130, 96]),
        ] {
            check(&official, num_tokens, &Matrix::random(format, shape, 1), Elem::F32);
        }
    }
}

#[test]
fn it_rounds_its_output() {
    for gpu in gpus() {
        for num_tokens in [1, 20, 40, 70] {
            check(&gpu, num_tokens, &Matrix::random(Format::Fp8, [10, 64], 2), Elem::Bf16);
        }
    }
}

#[test]
fn it_takes_columns_that_fill_no_vector() {
    for gpu in gpus() {
        for (format, cols) in [
            (Format::F32, 3),
            (Format::F32, 130),
            (Format::Bf16, 40),
            (Format::Bf16, 42),
            (Format::Fp8, 40),
            (Format::Fp8, 131),
            (Format::Fp8, 144),
        ] {
            for num_tokens in [1, 9, 40] {
                check(&gpu, num_tokens, &Matrix::random(format, [10, cols], 2), Elem::F32);
            }
        }
    }
}

#[test]
fn it_widens_any_scale() {
    for gpu in gpus() {
        for format in [Format::Fp8, Format::Fp4] {
            let (x, _) = upload(&gpu, &noise(9, 2 * 288), 288);
            let run = |low: u8| {
                let weights = Matrix::with_scales(format, [40, 288], 3, |b| low + b % 30);
                let mut out = Tensor::new(&gpu, Elem::F32, 0);
                matmul(&gpu, &x, &weights.upload(&gpu), Elem::F32, &mut out);
                out.download()
            };
            // Powers of two change no bit but the exponent's, as long as no sum is subnormal or overflows.
            let expected = run(100);
            for low in [30, 120, 190] {
                let factor = 2.0_f32.powi(i32::from(low) - 100);
                let scaled: Vec<f32> = expected.iter().map(|x| x * factor).collect();
                assert_bits(&run(low), &scaled, &format!("{format:?}, scales from {low}"));
            }
        }
    }
}

#[test]
fn all_tiles_agree_with_the_cpu_and_each_other() {
    let [_, gpu] = gpus();
    for (name, format) in [
        (TensorFormat::Bf16, Format::Bf16),
        (TensorFormat::Fp8, Format::Fp8),
        (TensorFormat::Fp4, Format::Fp4),
    ] {
        for (num_tokens, shape) in [(1, [384, 96]), (70, [130, 1184]), (130, [24, 320])] {
            let weights = Matrix::random(format, shape, 8);
            let [rows, cols] = shape;
            let (x, x_host) = upload(&gpu, &noise(9, num_tokens * cols), cols);
            let mut expected = vec![0.0; num_tokens * rows];
            on_cpu::matmul(&cpu(), &x_host, &weights.view(), &mut expected);
            let mut first: Option<Vec<f32>> = None;
            for tokens in [Tokens::Of8, Tokens::Of32, Tokens::Of64, Tokens::Of128] {
                let mut out = Tensor::new(&gpu, Elem::F32, rows);
                out.resize(num_tokens);
                let on_gpu = weights.upload(&gpu);
                let product = Product { x: &x, weights: &on_gpu, num_groups: 1 };
                product.run(&gpu, &tensor(name, tokens), &out);
                let what = format!("{num_tokens} tokens, {weights}, {tokens:?}");
                let out = out.download();
                assert_close(&out, &expected, 5e-5, &what);
                assert_bits(first.get_or_insert_with(|| out.clone()), &out, &what);
            }
        }
    }
}

#[test]
fn both_plain_kernels_agree() {
    for gpu in gpus() {
        let weights = Matrix::random(Format::Fp8, [6, 1300], 8).upload(&gpu);
        let (x, _) = upload(&gpu, &noise(9, 3 * 1300), 1300);
        let run = |kernel: &Kernel| {
            let mut out = Tensor::new(&gpu, Elem::F32, 6);
            out.resize(3);
            Product { x: &x, weights: &weights, num_groups: 1 }.run(&gpu, kernel, &out);
            out.download()
        };
        assert_bits(&run(&plain(SHORT_ROWS)), &run(&plain(SHORT_ROWS - 1)), "plain kernels");
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for gpu in gpus() {
        for (format, rows, cols) in [
            (Format::F32, 40, 1032),
            (Format::Bf16, 40, 1544),
            (Format::Fp8, 72, 2320),
            (Format::Fp4, 72, 2336),
        ] {
            let weights = Matrix::random(format, [rows, cols], 4).upload(&gpu);
            let num_rows = if gpu.act() == Elem::F32 || format == Format::F32 { 30 } else { 100 };
            let all = noise(5, num_rows * cols);
            let (x, _) = upload(&gpu, &all, cols);
            let mut expected = Tensor::new(&gpu, Elem::F32, rows);
            matmul(&gpu, &x, &weights, Elem::F32, &mut expected);
            let expected = expected.download();
            for (first, num_tokens) in [(13, 1), (11, 7), (93, 7), (60, 20)] {
                if first + num_tokens > num_rows {
                    continue;
                }
                let (x, _) = upload(&gpu, &all[first * cols..(first + num_tokens) * cols], cols);
                let mut out = Tensor::new(&gpu, Elem::F32, rows);
                matmul(&gpu, &x, &weights, Elem::F32, &mut out);
                let expected = &expected[first * rows..(first + num_tokens) * rows];
                assert_bits(&out.download(), expected, &format!("{format:?}, {num_tokens} tokens"));
            }
        }
    }
}

#[test]
fn groups_agree_with_the_cpu() {
    let [exact, official] = gpus();
    for (gpu, format, num_tokens, num_groups, shape) in [
        (&exact, Format::Fp8, 3, 3, [40, 96]),
        (&exact, Format::F32, 2, 2, [5, 10]),
        (&official, Format::F32, 3, 3, [24, 96]),
        (&official, Format::Bf16, 1, 3, [40, 96]),
        (&official, Format::Fp8, 40, 2, [130, 64]),
        (&official, Format::Fp4, 20, 3, [24, 128]),
    ] {
        let [rows, cols] = shape;
        let weights = Matrix::random(format, [num_groups * rows, cols], 6);
        check_groups(gpu, num_tokens, num_groups, &weights);
    }
}

#[track_caller]
fn check_groups(gpu: &Gpu, num_tokens: usize, num_groups: usize, weights: &Matrix) {
    let view = weights.view();
    let cols = num_groups * view.cols();
    let (x, x_host) = upload(gpu, &noise(7, num_tokens * cols), cols);
    let mut expected = vec![0.0; num_tokens * view.rows()];
    on_cpu::matmul_block_diagonal(&cpu(), &x_host, &view, num_groups, &mut expected);
    let mut out = Tensor::new(gpu, gpu.act(), 0);
    matmul_block_diagonal(gpu, &x, &weights.upload(gpu), num_groups, &mut out);
    let what = format!("{num_groups} groups, {weights}");
    assert_close(&out.download(), &expected, gpu.tolerance(), &what);
}
