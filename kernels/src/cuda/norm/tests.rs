use super::*;
use crate::cuda::testing::{cpu, gpus, upload};
use crate::norm;
use crate::testing::{assert_close, noise};

#[test]
fn it_agrees_with_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (num_rows, row_len) in [(1, 1), (3, 64), (5, 300), (2, 7168)] {
            let weight = noise(1, row_len);
            let (mut x, mut expected) = upload(&gpu, &noise(2, num_rows * row_len), row_len);
            rms_norm(&gpu, &mut x, &gpu.upload(&weight), 1e-6);
            norm::rms_norm(&cpu, &mut expected, &weight, 1e-6);
            assert_close(&x.download(), &expected, gpu.tolerance(), "weighted");
            rms_norm_unweighted(&gpu, &mut x, row_len, 1e-6);
            norm::rms_norm_unweighted(&cpu, &mut expected, row_len, 1e-6);
            assert_close(&x.download(), &expected, gpu.tolerance(), "unweighted");
        }
    }
}
