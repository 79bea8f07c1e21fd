use super::*;
use crate::Cpu;
use crate::cuda::testing::{cpu, gpus, upload};
use crate::hyper::{self, HyperExpand, hc_coefficients, hc_collapse, hc_expand, hc_head};
use crate::matmul::{WeightData, WeightMatrix};
use crate::testing::{assert_bits, assert_close, noise};

const SHAPES: [(usize, usize, usize); 6] =
    [(3, 4, 64), (2, 4, 2056), (9, 4, 300), (2, 2, 33), (3, 1, 7), (2, 7, 24)];

/// Parameters on both sides.
struct Twin {
    function: Vec<u8>,
    base: Vec<f32>,
    scale: Vec<f32>,
    on_gpu: (Weights, Memory<f32>, Memory<f32>),
}

impl Twin {
    fn new(gpu: &Gpu, [num_outputs, len]: [usize; 2], num_scales: usize) -> Self {
        let function: Vec<u8> =
            noise(1, num_outputs * len).iter().flat_map(|x| x.to_le_bytes()).collect();
        let base = noise(2, num_outputs);
        let scale = vec![0.7; num_scales];
        let matrix = Weights::upload(gpu, Format::F32, [num_outputs, len], &function, &[]);
        let on_gpu = (matrix, gpu.upload(&base), gpu.upload(&scale));
        Self { function, base, scale, on_gpu }
    }

    fn gpu(&self) -> HyperWeights<'_> {
        let (function, base, scale) = &self.on_gpu;
        HyperWeights { function, base, scale }
    }

    fn cpu(&self) -> hyper::HyperWeights<'_> {
        let (rows, cols) = (self.on_gpu.0.rows(), self.on_gpu.0.cols());
        let function = WeightMatrix::new(rows, cols, WeightData::F32(&self.function)).unwrap();
        hyper::HyperWeights { function, base: &self.base, scale: &self.scale }
    }
}

fn params(num_streams: usize) -> HyperParams {
    HyperParams { num_streams, sinkhorn_iters: 20, hc_eps: 1e-6, norm_eps: 1e-6 }
}

fn cast(gpu: &Gpu, cpu: &Cpu, x: &mut [f32]) {
    if gpu.act() == Elem::Bf16 {
        crate::quant::round_bf16(cpu, x);
    }
}

#[test]
fn sublayers_agree_with_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (num_rows, n, hidden) in SHAPES {
            let params = params(n);
            let twin = Twin::new(&gpu, [n * (2 + n), n * hidden], 3);
            let (mut streams, h) = upload(&gpu, &noise(3, num_rows * n * hidden), n * hidden);
            let (mut mix, mut x) = (HyperMix::new(&gpu), Tensor::new(&gpu, gpu.act(), 1));
            hyper_pre(&gpu, &twin.gpu(), &params, (&streams, &mut mix, &mut x));
            let coefficients = hc_coefficients(&cpu, &h, &twin.cpu(), &params);
            let mut expected = vec![0.0; num_rows * hidden];
            hc_collapse(&cpu, &h, &coefficients.pre, hidden, &mut expected);
            cast(&gpu, &cpu, &mut expected);
            assert_close(&x.download(), &expected, gpu.tolerance(), "collapsed");
            assert_close(&mix.post.download(), &coefficients.post, 2e-5, "post");
            assert_close(&mix.comb.download(), &coefficients.comb, 1e-4, "comb");

            let (y, data) = upload(&gpu, &noise(4, num_rows * hidden), hidden);
            hyper_post(&gpu, &y, &mix, &mut streams);
            let args = HyperExpand { y: &data, coefficients: &coefficients, hidden };
            let mut expected = vec![0.0; h.len()];
            hc_expand(&cpu, &h, &args, &mut expected);
            cast(&gpu, &cpu, &mut expected);
            assert_close(&streams.download(), &expected, 5.0 * gpu.tolerance(), "expanded");
        }
    }
}

#[test]
fn the_head_agrees_with_the_cpu() {
    let cpu = cpu();
    for gpu in gpus() {
        for (num_rows, n, hidden) in SHAPES {
            let params = params(n);
            let twin = Twin::new(&gpu, [n, n * hidden], 1);
            let (streams, h) = upload(&gpu, &noise(3, num_rows * n * hidden), n * hidden);
            let mut x = Tensor::new(&gpu, gpu.act(), 1);
            hyper_head(&gpu, &twin.gpu(), &params, &streams, &mut x);
            let pre = hc_head(&cpu, &h, &twin.cpu(), &params);
            let mut expected = vec![0.0; num_rows * hidden];
            hc_collapse(&cpu, &h, &pre, hidden, &mut expected);
            cast(&gpu, &cpu, &mut expected);
            assert_close(&x.download(), &expected, gpu.tolerance(), "collapsed");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (n, hidden, num_rows) = (4, 264, MANY_ROWS + 3);
    for gpu in gpus() {
        let twin = Twin::new(&gpu, [n * (2 + n), n * hidden], 3);
        let run = |data: &[f32]| {
            let (mut streams, _) = upload(&gpu, data, n * hidden);
            let (mut mix, mut x) = (HyperMix::new(&gpu), Tensor::new(&gpu, gpu.act(), 1));
            hyper_pre(&gpu, &twin.gpu(), &params(n), (&streams, &mut mix, &mut x));
            hyper_post(&gpu, &x, &mix, &mut streams);
            (x.download(), streams.download())
        };
        let data = noise(5, num_rows * n * hidden);
        let (x, streams) = run(&data);
        for row in [0, 12, num_rows - 1] {
            let range = |width: usize| row * width..(row + 1) * width;
            let (alone, alone_streams) = run(&data[range(n * hidden)]);
            assert_bits(&alone, &x[range(hidden)], "collapsed");
            assert_bits(&alone_streams, &streams[range(n * hidden)], "expanded");
        }
    }
}

#[test]
fn a_row_of_the_head_does_not_depend_on_its_batch() {
    let (n, hidden) = (4, 520);
    for gpu in gpus() {
        let twin = Twin::new(&gpu, [n, n * hidden], 1);
        let run = |data: &[f32]| {
            let (streams, _) = upload(&gpu, data, n * hidden);
            let mut x = Tensor::new(&gpu, gpu.act(), 1);
            hyper_head(&gpu, &twin.gpu(), &params(n), &streams, &mut x);
            x.download()
        };
        let data = noise(6, 3 * n * hidden);
        assert_bits(&run(&data[n * hidden..2 * n * hidden]), &run(&data)[hidden..2 * hidden], "x");
    }
}
