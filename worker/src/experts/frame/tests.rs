use super::*;
use proptest::prelude::*;

fn sample(format: RowFormat) -> (Vec<f32>, Outgoing, Vec<u8>) {
    let x: Vec<f32> = (0..12).map(|i| i as f32 * 0.5).collect();
    let mut out = Outgoing::default();
    assert_eq!(out.push(0, Assignment { slot: 3, weight: 0.25 }), 0);
    assert_eq!(out.push(0, Assignment { slot: 1, weight: 0.75 }), 1);
    assert_eq!(out.push(2, Assignment { slot: 0, weight: 1.0 }), 2);
    let mut buffer = vec![9; 3];
    out.write(&x, 4, format, &mut buffer);
    (x, out, buffer)
}

#[test]
fn a_dispatch_frame_brings_rows_once_and_assignments_in_order() {
    for format in [RowFormat::F32, RowFormat::Bf16] {
        let (x, out, buffer) = sample(format);
        let frame = DispatchFrame::parse(&buffer, (4, format), 4).unwrap();
        assert_eq!(frame.counts().collect::<Vec<_>>(), [2, 1]);
        assert_eq!(frame.assignments().collect::<Vec<_>>(), out.assignments);
        let mut rows = vec![0.0; 8];
        format.read(frame.rows(), &mut rows);
        assert_eq!(rows, [&x[..4], &x[8..]].concat());
    }
}

#[test]
fn no_rows_are_no_bytes() {
    let mut buffer = vec![1];
    Outgoing::default().write(&[], 4, RowFormat::F32, &mut buffer);
    assert!(buffer.is_empty());
    assert_eq!(DispatchFrame::parse(&buffer, (4, RowFormat::F32), 1).unwrap().num_rows(), 0);
    CombineFrame::write(&[], 4, RowFormat::F32, &mut buffer);
    assert!(buffer.is_empty());
    CombineFrame::parse(&buffer, (4, RowFormat::F32), 0).unwrap();
}

#[test]
fn every_truncation_and_every_foreign_slot_is_refused() {
    let (_, _, buffer) = sample(RowFormat::F32);
    for len in 1..buffer.len() {
        DispatchFrame::parse(&buffer[..len], (4, RowFormat::F32), 4).unwrap_err();
    }
    let fault = DispatchFrame::parse(&buffer, (4, RowFormat::F32), 3).unwrap_err();
    assert_eq!(fault, "slot 3 of 3");
    let mut answer = Vec::new();
    CombineFrame::write(&[1.0; 8], 4, RowFormat::F32, &mut answer);
    for (len, assignments) in [(answer.len() - 1, 2), (answer.len(), 3), (3, 2), (0, 1), (4, 0)] {
        CombineFrame::parse(&answer[..len], (4, RowFormat::F32), assignments).unwrap_err();
    }
    let parsed = CombineFrame::parse(&answer, (4, RowFormat::F32), 2).unwrap();
    assert_eq!(parsed.row(1), &answer[20..]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), hidden in 0usize..9) {
        if let Ok(frame) = DispatchFrame::parse(&bytes, (hidden, RowFormat::F32), 4) {
            prop_assert!(frame.assignments().all(|a| a.slot < 4));
            prop_assert_eq!(frame.rows().len(), frame.num_rows() * hidden * 4);
        }
        if let Ok(frame) = CombineFrame::parse(&bytes, (hidden, RowFormat::Bf16), 3) {
            prop_assert_eq!(frame.row(2).len(), hidden * 2);
        }
    }
}
