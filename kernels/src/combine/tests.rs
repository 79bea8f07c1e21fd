use super::*;
use crate::testing::{assert_bits, cpus, noise};

#[test]
fn adds_in_the_order_given() {
    let data = noise(1, 5 * 19);
    let rows: Vec<&[f32]> = data.chunks(19).collect();
    let expected: Vec<f32> =
        (0..19).map(|c| rows.iter().fold(0.0, |sum: f32, row| sum + row[c])).collect();
    for cpu in cpus() {
        let mut out = [f32::NAN; 19];
        combine(&cpu, &rows, &mut out);
        assert_bits(&out, &expected, cpu.isa().name());
        combine(&cpu, &[], &mut out);
        assert_bits(&out, &[0.0; 19], "no row");
    }
}
