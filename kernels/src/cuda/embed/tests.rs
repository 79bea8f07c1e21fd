use half::bf16;

use super::*;
use crate::cuda::testing::{gpus, upload};
use crate::cuda::{Elem, Variant};
use crate::testing::{assert_bits, noise};

/// A table in `format`, and its numbers.
fn table(gpu: &Gpu, format: Format, [vocab, hidden]: [usize; 2]) -> (Weights, Vec<f32>) {
    let data = noise(1, vocab * hidden);
    let (bytes, data): (Vec<u8>, Vec<f32>) = match format {
        Format::Bf16 => {
            let halves: Vec<_> = data.iter().map(|&x| bf16::from_f32(x)).collect();
            let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
            (bytes, halves.iter().map(|x| x.to_f32()).collect())
        }
        Format::F32 | Format::Fp8 | Format::Fp4 => {
            (data.iter().flat_map(|x| x.to_le_bytes()).collect(), data)
        }
    };
    (Weights::upload(gpu, format, [vocab, hidden], &bytes, &[]), data)
}

#[test]
fn every_stream_begins_with_the_embedding() {
    for gpu in gpus() {
        for (format, hidden, num_streams) in [
            (Format::F32, 24, 4),
            (Format::Bf16, 2056, 4),
            (Format::Bf16, 33, 1),
            (Format::F32, 5, 2),
        ] {
            let (weights, data) = table(&gpu, format, [11, hidden]);
            let ids = [3_u32, 10, 0, 3, 7];
            let mut streams = Tensor::new(&gpu, gpu.act(), 1);
            embed(&gpu, &weights, &gpu.upload(&ids), (4, num_streams), &mut streams);
            let expected: Vec<f32> =
                ids[..4]
                    .iter()
                    .flat_map(|&id| data[id as usize * hidden..][..hidden].repeat(num_streams))
                    .map(|x| {
                        if gpu.variant() == Variant::Exact { x } else { bf16::from_f32(x).to_f32() }
                    })
                    .collect();
            assert_eq!(streams.num_rows(), 4);
            assert_bits(&streams.download(), &expected, "streams");
        }
    }
}

#[test]
fn rows_are_taken_in_order() {
    for gpu in gpus() {
        for cols in [1, 7, 64, 2100] {
            let (x, data) = upload(&gpu, &noise(2, 5 * cols), cols);
            let mut out = Tensor::new(&gpu, Elem::F32, 1);
            take_rows(&gpu, &x, &gpu.upload(&[4, 0, 4]), 3, &mut out);
            let expected: Vec<f32> =
                [4, 0, 4].iter().flat_map(|row| data[row * cols..][..cols].to_vec()).collect();
            assert_bits(&out.download(), &expected, "rows");
            take_rows(&gpu, &x, &gpu.upload(&[4]), 0, &mut out);
            assert_eq!(out.num_rows(), 0);
        }
    }
}
