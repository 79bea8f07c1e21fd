use proptest::prelude::*;

use super::*;

const PHASE: Phase = Phase { step: StepId(7), layer: 3, direction: Direction::Combine };

fn header() -> Header {
    let (kind, rank, epoch) = (Kind::Rows, EpRank(5), GroupEpoch(9));
    Header { kind, rank, epoch, phase: Some(PHASE), len: 4096 }
}

#[test]
fn a_header_survives_the_wire() {
    assert_eq!(Header::decode(&header().encode()), Ok(header()));
}

#[test]
fn the_layout_does_not_change_unnoticed() {
    let expected = "53575946 01 02 0000 03000000 05000000 0900000000000000 0700000000000000 \
                    0010000000000000";
    assert_eq!(hex::encode(header().encode()), expected.replace(' ', ""));
}

#[test]
fn a_damaged_header_is_refused() {
    let check = |at: usize, byte: u8, complaint: &str| {
        let mut bytes = header().encode();
        bytes[at] = byte;
        let error = Header::decode(&bytes).unwrap_err();
        assert!(error.contains(complaint), "{error}");
    };
    check(0, b'G', "it begins with [47, 57, 59, 46]");
    check(4, 3, "kind is 3");
    check(5, 0, "direction is 0");
    check(36, 1, "announces 4294971392 bytes, the limit is 2147483648");
    check(4, 2, "announces 4096 bytes, the limit is 529");
}

#[test]
fn a_notice_survives_the_wire() {
    let causes = [
        Cause::Lost,
        Cause::Timeout { waited_ms: 1234 },
        Cause::StaleEpoch { theirs: GroupEpoch(1), ours: GroupEpoch(2) },
        Cause::Malformed { detail: "it is too long".to_owned() },
    ];
    for cause in causes {
        for phase in [None, Some(PHASE)] {
            let failure = Failure { culprit: EpRank(2), phase, cause: cause.clone() };
            let bytes = encode_notice(&failure, GroupEpoch(9));
            let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
            let body = &bytes[HEADER_BYTES..];
            assert_eq!((header.kind, header.len), (Kind::Notice, body.len() as u64));
            assert_eq!(decode_notice(&header, body), Ok(failure));
        }
    }
}

#[test]
fn a_long_explanation_is_cut() {
    let cause = Cause::Malformed { detail: "é".repeat(NOTICE_DETAIL_BYTES_MAX) };
    let bytes = encode_notice(&Failure { culprit: EpRank(2), phase: None, cause }, GroupEpoch(9));
    assert_eq!(bytes.len(), HEADER_BYTES + NOTICE_BYTES_MAX);
    Header::decode(bytes.first_chunk().unwrap()).unwrap();
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(bytes: [u8; HEADER_BYTES], body: Vec<u8>) {
        let _ = Header::decode(&bytes);
        let _ = decode_notice(&header(), &body);
    }
}
