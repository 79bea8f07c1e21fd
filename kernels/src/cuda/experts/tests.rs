use std::iter;

use super::*;
use crate::cuda::Elem;
use crate::cuda::testing::{Matrix, cpu, gpus, upload};
use crate::matmul::{TokenGroup, matmul_grouped};
use crate::testing::{assert_bits, assert_close, noise};

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Fp8, Format::Fp4];

/// Where each slot's tokens begin, if slot s has `counts[s]`.
fn offsets(counts: &[u32]) -> Vec<u32> {
    let end = |sum: &mut u32, &count: &u32| {
        *sum += count;
        Some(*sum)
    };
    iter::once(0).chain(counts.iter().scan(0, end)).collect()
}

/// Tokens of each slot; slots without a matrix; rows behind the last token.
type Case = (&'static [u32], &'static [usize], usize);
const CASES: [Case; 6] = [
    (&[1], &[], 0),
    (&[0, 2, 0, 1], &[], 3),
    (&[3, 0, 9, 1], &[2], 0),
    (&[0, 0, 0], &[0, 2], 5),
    (&[40, 0, 35, 1], &[0], 2),
    (&[65, 130, 3], &[], 7),
];

#[test]
fn it_agrees_with_the_cpu() {
    let [exact, official] = gpus();
    for (i, case) in CASES.into_iter().enumerate() {
        for format in FORMATS {
            check(&official, format, case);
        }
        check(&exact, FORMATS[i % 4], case);
    }
}

#[track_caller]
fn check(gpu: &Gpu, format: Format, (counts, empty, num_unused): Case) {
    // Plain multiplications take the emulator long.
    let rows = if gpu.act() == Elem::F32 || format == Format::F32 { 3 } else { 21 };
    let cols = 160;
    let offsets = offsets(counts);
    let num_tokens = offsets[counts.len()] as usize;
    let capacity = num_tokens + num_unused;
    let (x, x_host) = upload(gpu, &noise(1, capacity * cols), cols);
    let experts: Vec<Matrix> =
        (0..counts.len()).map(|s| Matrix::random(format, [rows, cols], s as u32)).collect();
    let is_there = |s: &usize| !empty.contains(s);
    let group = |s: usize| TokenGroup {
        tokens: offsets[s] as usize..offsets[s + 1] as usize,
        weights: experts[s].view(),
    };
    let groups: Vec<_> = (0..counts.len()).filter(is_there).map(group).collect();
    let mut expected = vec![0.0; capacity * rows];
    matmul_grouped(&cpu(), &x_host, &groups, &mut expected);
    expected[num_tokens * rows..].fill(1.0);
    let slots = (0..counts.len()).map(|s| is_there(&s).then(|| experts[s].upload(gpu)));
    let matrices = ExpertMatrices::new(gpu, slots.collect());
    let mut out = Tensor::upload(gpu, gpu.act(), &vec![1.0; capacity * rows], rows);
    matmul_experts(gpu, &x, &matrices, &gpu.upload(&offsets), &mut out);
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    assert_close(&out.download(), &expected, gpu.tolerance(), &format!("{format:?} {counts:?}"));
}

#[test]
fn more_slots_than_threads_are_found() {
    for gpu in gpus() {
        let (rows, cols, num_slots) = (3, 32, 600);
        let counts: Vec<u32> = (0..num_slots).map(|s| u32::from(s % 97 == 5)).collect();
        let offsets = offsets(&counts);
        let capacity = offsets[num_slots] as usize;
        let (x, x_host) = upload(&gpu, &noise(2, capacity * cols), cols);
        let experts = |s: usize| Matrix::random(Format::Fp4, [rows, cols], s as u32);
        let slots = (0..num_slots).map(|s| Some(experts(s).upload(&gpu))).collect();
        let mut out = Tensor::new(&gpu, gpu.act(), 0);
        matmul_experts(
            &gpu,
            &x,
            &ExpertMatrices::new(&gpu, slots),
            &gpu.upload(&offsets),
            &mut out,
        );
        let mut expected = vec![0.0; capacity * rows];
        for (token, s) in (0..num_slots).filter(|&s| counts[s] > 0).enumerate() {
            let (x, y) = (&x_host[token * cols..][..cols], &mut expected[token * rows..][..rows]);
            crate::matmul::matmul(&cpu(), x, &experts(s).view(), y);
        }
        assert_close(&out.download(), &expected, gpu.tolerance(), "600 slots");
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for gpu in gpus() {
        for format in FORMATS {
            let rows = if gpu.act() == Elem::F32 || format == Format::F32 { 1 } else { 20 };
            let cols = 1184;
            let matrices = ExpertMatrices::new(
                &gpu,
                (0..3)
                    .map(|s| Some(Matrix::random(format, [rows, cols], s).upload(&gpu)))
                    .collect(),
            );
            let all = noise(3, 150 * cols);
            let run = |x: &[f32], counts: [u32; 3]| {
                let mut out = Tensor::new(&gpu, gpu.act(), 0);
                let (x, _) = upload(&gpu, x, cols);
                matmul_experts(&gpu, &x, &matrices, &gpu.upload(&offsets(&counts)), &mut out);
                out.download()
            };
            let together = run(&all, [70, 10, 70]);
            for (token, slot) in [(0, 0), (69, 0), (75, 1), (80, 2), (149, 2)] {
                let mut counts = [0; 3];
                counts[slot] = 1;
                let alone = run(&all[token * cols..][..cols], counts);
                assert_bits(
                    &alone,
                    &together[token * rows..][..rows],
                    &format!("{format:?}, token {token}"),
                );
            }
            let some = run(&all[60 * cols..100 * cols], [10, 10, 20]);
            assert_bits(&some, &together[60 * rows..100 * rows], &format!("{format:?}, 40 tokens"));
        }
    }
}
