use super::*;
use crate::cuda::Elem;
use crate::cuda::testing::{cpu, gpus};
use crate::gate::{gate_scores, routing_weights, select_experts};
use crate::testing::{assert_bits, assert_close, noise};

fn scaled(seed: u32, len: usize, factor: f32) -> Vec<f32> {
    noise(seed, len).iter().map(|x| x * factor).collect()
}

#[test]
fn scores_choose_as_on_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (num_rows, num_experts, num_topk) in
            [(5, 256, 6), (3, 384, 6), (9, 13, 4), (2, 40, 40), (1, 1, 1), (0, 8, 2)]
        {
            let mut scores = scaled(1, num_rows * num_experts, 30.0);
            let bias = noise(2, num_experts);
            let mut logits = Tensor::new(&gpu, Elem::F32, num_experts);
            if num_rows > 0 {
                logits = Tensor::upload(&gpu, Elem::F32, &scores, num_experts);
            }
            let mut routing = Routing::new(&gpu);
            let choice = GateChoice::Score { bias: &gpu.upload(&bias) };
            gate(&gpu, &logits, &choice, (1.5, num_topk), &mut routing);
            gate_scores(&cpu, &mut scores);
            assert_eq!((routing.num_rows(), routing.num_topk()), (num_rows, num_topk));
            for (row, scores) in scores.chunks(num_experts).enumerate() {
                let experts = select_experts(scores, &bias, num_topk);
                let mut weights = vec![0.0; num_topk];
                routing_weights(scores, &experts, 1.5, &mut weights);
                assert_eq!(routing.experts().read(row * num_topk, num_topk), experts);
                assert_close(
                    &routing.weights().read(row * num_topk, num_topk),
                    &weights,
                    2e-5,
                    "w",
                );
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_index_and_nan_comes_last() {
    let [gpu, _] = gpus();
    let mut logits = vec![0.0; 40];
    logits[7] = f32::NAN;
    logits[39] = 3.0;
    let logits = Tensor::upload(&gpu, Elem::F32, &logits, 40);
    let choice = GateChoice::Score { bias: &gpu.zeros(40) };
    let mut routing = Routing::new(&gpu);
    gate(&gpu, &logits, &choice, (1.0, 5), &mut routing);
    assert_eq!(routing.experts().read(0, 5), [39, 0, 1, 2, 3]);
    gate(&gpu, &logits, &choice, (1.0, 40), &mut routing);
    assert_eq!(routing.experts().read(0, 40)[39], 7);
}

#[test]
fn tables_choose_by_token() {
    let cpu = cpu();
    for gpu in gpus() {
        let (num_experts, num_topk) = (24, 3);
        let table: Vec<u32> = (0..10 * num_topk as u32).map(|i| i * 7 % 24).collect();
        let ids = [9_u32, 0, 9, 4, 1];
        let mut scores = scaled(3, ids.len() * num_experts, 5.0);
        let logits = Tensor::upload(&gpu, Elem::F32, &scores, num_experts);
        let choice = GateChoice::Hash { table: &gpu.upload(&table), ids: &gpu.upload(&ids) };
        let mut routing = Routing::new(&gpu);
        gate(&gpu, &logits, &choice, (2.5, num_topk), &mut routing);
        gate_scores(&cpu, &mut scores);
        for (row, (scores, &id)) in scores.chunks(num_experts).zip(&ids).enumerate() {
            let experts = &table[id as usize * num_topk..][..num_topk];
            let mut weights = vec![0.0; num_topk];
            routing_weights(scores, experts, 2.5, &mut weights);
            assert_eq!(routing.experts().read(row * num_topk, num_topk), experts);
            assert_close(&routing.weights().read(row * num_topk, num_topk), &weights, 2e-5, "w");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let [gpu, _] = gpus();
    let data = scaled(4, 6 * 50, 9.0);
    let run = |data: &[f32]| {
        let choice = GateChoice::Score { bias: &gpu.upload(&noise(5, 50)) };
        let mut routing = Routing::new(&gpu);
        let logits = Tensor::upload(&gpu, Elem::F32, data, 50);
        gate(&gpu, &logits, &choice, (1.0, 7), &mut routing);
        routing.weights().read(0, data.len() / 50 * 7)
    };
    assert_bits(&run(&data[250..]), &run(&data)[35..], "the last row");
}
