use super::*;
use crate::cuda::testing::{cpu, gpus, upload};
use crate::swiglu::{self as twin, Swiglu};
use crate::testing::{assert_bits, assert_close, noise};

#[test]
fn it_agrees_with_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (num_rows, width) in [(3, 64), (2, 2056), (5, 33), (1, 1)] {
            let data = noise(1, num_rows * width).iter().map(|x| x * 9.0).collect::<Vec<_>>();
            let (up, ups) = upload(&gpu, &noise(2, num_rows * width), width);
            let weights = noise(3, num_rows + 2);
            for (limit, routing_weights) in
                [(0.0, None), (0.5, None), (3.0, Some(&weights[..num_rows]))]
            {
                let (mut gate, gates) = upload(&gpu, &data, width);
                let on_gpu = routing_weights.map(|_| gpu.upload(&weights));
                swiglu(&gpu, &mut gate, &up, limit, on_gpu.as_ref());
                let args = Swiglu { gate: &gates, up: &ups, limit, routing_weights };
                let mut expected = vec![0.0; data.len()];
                twin::swiglu(&cpu, &args, &mut expected);
                assert_close(&gate.download(), &expected, gpu.tolerance(), "activation");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for gpu in gpus() {
        let (width, data, ups) = (40, noise(4, 3 * 40), noise(5, 3 * 40));
        let run = |rows: std::ops::Range<usize>| {
            let range = rows.start * width..rows.end * width;
            let (mut gate, _) = upload(&gpu, &data[range.clone()], width);
            let (up, _) = upload(&gpu, &ups[range], width);
            swiglu(&gpu, &mut gate, &up, 10.0, None);
            gate.download()
        };
        assert_bits(&run(1..2), &run(0..3)[width..2 * width], "row 1");
    }
}
