use super::*;
use crate::matmul::WeightData;
use crate::testing::{Goldens, assert_bits, assert_close, cpus, noise};

const PARAMS: HyperParams =
    HyperParams { num_streams: 4, sinkhorn_iters: 20, hc_eps: 1e-6, norm_eps: 1e-6 };

#[test]
fn coefficients_collapse_and_expand_match_the_goldens() {
    let goldens = Goldens::open();
    let function = WeightMatrix::new(24, 512, WeightData::F32(goldens.bytes("hc.fn"))).unwrap();
    let (base, scale) = (goldens.floats("hc.base"), goldens.floats("hc.scale"));
    let weights = HyperWeights { function, base: &base, scale: &scale };
    let (h, y) = (goldens.floats("hc.h"), goldens.floats("hc.sub_out"));
    for cpu in cpus() {
        let coefficients = hc_coefficients(&cpu, &h, &weights, &PARAMS);
        assert_close(&coefficients.pre, &goldens.floats("hc.pre"), 1e-6, "pre");
        assert_close(&coefficients.post, &goldens.floats("hc.post"), 1e-6, "post");
        assert_close(&coefficients.comb, &goldens.floats("hc.comb"), 1e-6, "comb");
        let mut x = vec![0.0; 6 * 128];
        hc_collapse(&cpu, &h, &coefficients.pre, 128, &mut x);
        assert_close(&x, &goldens.floats("hc.collapsed"), 1e-6, "collapsed");
        let mut out = vec![0.0; h.len()];
        let expand = HyperExpand { y: &y, coefficients: &coefficients, hidden: 128 };
        hc_expand(&cpu, &h, &expand, &mut out);
        assert_close(&out, &goldens.floats("hc.expanded"), 1e-6, "expanded");
    }
}

/// Random weights of `num_outputs` over 4 streams of 40 channels.
fn with_weights(num_outputs: usize, num_scales: usize, f: impl Fn(&HyperWeights<'_>)) {
    let function: Vec<u8> =
        noise(1, num_outputs * 160).into_iter().flat_map(f32::to_le_bytes).collect();
    let function = WeightMatrix::new(num_outputs, 160, WeightData::F32(&function)).unwrap();
    let (base, scale) = (noise(2, num_outputs), noise(3, num_scales));
    f(&HyperWeights { function, base: &base, scale: &scale });
}

#[test]
fn the_mixing_matrix_is_doubly_stochastic() {
    with_weights(24, 3, |weights| {
        let cpu = Cpu::single_threaded(crate::Isa::detect());
        let coefficients = hc_coefficients(&cpu, &noise(4, 3 * 160), weights, &PARAMS);
        for comb in coefficients.comb.chunks(16) {
            for i in 0..4 {
                let row: f32 = comb[4 * i..4 * i + 4].iter().sum();
                let column: f32 = comb.iter().skip(i).step_by(4).sum();
                assert!((row - 1.0).abs() < 2e-2 && (column - 1.0).abs() < 1e-5, "{comb:?}");
            }
        }
    });
}

#[test]
fn a_token_gets_the_same_bits_alone_as_in_a_batch_on_any_instruction_set() {
    let (h, y) = (noise(4, 5 * 160), noise(5, 5 * 40));
    with_weights(24, 3, |weights| {
        let run = |cpu: &Cpu, h: &[f32], y: &[f32]| {
            let coefficients = hc_coefficients(cpu, h, weights, &PARAMS);
            let mut x = vec![0.0; y.len()];
            hc_collapse(cpu, h, &coefficients.pre, 40, &mut x);
            let mut out = vec![0.0; h.len()];
            let expand = HyperExpand { y, coefficients: &coefficients, hidden: 40 };
            hc_expand(cpu, h, &expand, &mut out);
            (x, out)
        };
        let expected = run(&Cpu::single_threaded(crate::Isa::PORTABLE), &h, &y);
        for cpu in cpus() {
            let batch = run(&cpu, &h, &y);
            assert_bits(&batch.0, &expected.0, "collapsed");
            assert_bits(&batch.1, &expected.1, "expanded");
            let alone = run(&cpu, &h[160..320], &y[40..80]);
            assert_bits(&alone.0, &expected.0[40..80], "collapsed alone");
            assert_bits(&alone.1, &expected.1[160..320], "expanded alone");
        }
    });
}

#[test]
fn the_head_reads_the_formula() {
    let h = noise(9, 2 * 160);
    with_weights(4, 1, |weights| {
        let mut function = vec![0.0; 4 * 160];
        let portable = Cpu::single_threaded(crate::Isa::PORTABLE);
        for (row, out) in function.chunks_mut(160).enumerate() {
            weights.function.widen_row(&portable, row, out);
        }
        let expected: Vec<f32> = h
            .chunks(160)
            .flat_map(|flat| {
                let square: f64 = flat.iter().map(|&x| f64::from(x).powi(2)).sum();
                let inverse = (square / 160.0 + 1e-6).sqrt().recip();
                function.chunks(160).zip(weights.base).map(move |(row, &base)| {
                    let dot: f64 = row.iter().zip(flat).map(|(&a, &b)| f64::from(a * b)).sum();
                    let z = dot * inverse * f64::from(weights.scale[0]) + f64::from(base);
                    (1.0 / (1.0 + (-z).exp()) + 1e-6) as f32
                })
            })
            .collect();
        for cpu in cpus() {
            assert_close(&hc_head(&cpu, &h, weights, &PARAMS), &expected, 1e-6, "pre");
        }
    });
}
