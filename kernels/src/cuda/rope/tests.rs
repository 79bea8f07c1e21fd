use super::*;
use crate::cuda::Row;
use crate::cuda::testing::{cpu, gpus, upload};
use crate::quant::round_bf16;
use crate::rope::{self as twin, RopeParams, RopeTable};
use crate::testing::{assert_bits, assert_close, noise};

const POSITIONS: [u32; 5] = [0, 1, 77, 65_537, 1_048_575];

fn step(gpu: &Gpu, positions: &[u32]) -> Step {
    let mut step = Step::new(gpu);
    let rows: Vec<_> =
        positions.iter().map(|&position| Row { position, ..Row::default() }).collect();
    step.set(gpu, &rows, &[]);
    step
}

#[test]
fn it_agrees_with_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (heads, head_dim, rotary_dim) in [(3, 72, 64), (40, 64, 64), (2, 21, 10), (1, 8, 6)] {
            let table = RopeTable::new(&RopeParams { theta: 1e4, rotary_dim, yarn: None });
            let inv_freq = gpu.upload(table.inv_freq());
            let mut angles = Tensor::new(&gpu, Elem::F32, 1);
            rope_angles(&gpu, &step(&gpu, &POSITIONS), &inv_freq, &mut angles);
            let width = heads * head_dim;
            let (mut x, mut expected) = upload(&gpu, &noise(1, POSITIONS.len() * width), width);
            for inverse in [false, true] {
                let turn = if inverse { twin::rope_inverse } else { twin::rope };
                for (row, &position) in expected.chunks_mut(width).zip(&POSITIONS) {
                    turn(row, head_dim, &table.angles(position));
                }
                if gpu.act() == Elem::Bf16 {
                    round_bf16(&cpu, &mut expected);
                }
                rope(&gpu, &mut x, head_dim, &angles, inverse);
                assert_close(&x.download(), &expected, gpu.tolerance(), "rotated");
            }
        }
    }
}

#[test]
fn angles_are_the_cpus() {
    let [gpu, _] = gpus();
    let table = RopeTable::new(&RopeParams { theta: 160_000.0, rotary_dim: 64, yarn: None });
    let positions: Vec<u32> =
        (0..300).map(|i| (i * 7919 + i * i * 31) % (1 << 20)).chain(POSITIONS).collect();
    let mut angles = Tensor::new(&gpu, Elem::F32, 1);
    rope_angles(&gpu, &step(&gpu, &positions), &gpu.upload(table.inv_freq()), &mut angles);
    // A unit vector along each first channel becomes cosine and sine.
    for (row, &position) in angles.download().chunks(64).zip(&positions) {
        let mut expected: Vec<f32> = (0..64).map(|i| [1.0, 0.0][i % 2]).collect();
        twin::rope(&mut expected, 64, &table.angles(position));
        assert_bits(row, &expected, "cosines and sines");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for gpu in gpus() {
        let table = RopeTable::new(&RopeParams { theta: 1e4, rotary_dim: 16, yarn: None });
        let inv_freq = gpu.upload(table.inv_freq());
        let run = |positions: &[u32], data: &[f32]| {
            let mut angles = Tensor::new(&gpu, Elem::F32, 1);
            rope_angles(&gpu, &step(&gpu, positions), &inv_freq, &mut angles);
            let (mut x, _) = upload(&gpu, data, 48);
            rope(&gpu, &mut x, 24, &angles, false);
            x.download()
        };
        let data = noise(2, POSITIONS.len() * 48);
        let all = run(&POSITIONS, &data);
        assert_bits(&run(&POSITIONS[3..4], &data[144..192]), &all[144..192], "row 3");
    }
}
