use super::{Decoder, EVENT_BYTES_MAX, TooLong};

const STREAM: &str = ": keep-alive\n\ndata: {\"a\":1}\n\nevent: error\r\ndata: grüße\r\n\r\ndata:x\ndata: y\n\ndata: [DONE]\n\n";

#[test]
fn events_are_found_however_the_bytes_are_split() {
    for size in 1..=STREAM.len() {
        let mut decoder = Decoder::default();
        let mut payloads = Vec::new();
        for bytes in STREAM.as_bytes().chunks(size) {
            payloads.extend(decoder.push(bytes).unwrap());
        }
        assert_eq!(payloads, ["{\"a\":1}", "grüße", "x\ny", "[DONE]"], "in pieces of {size}");
    }
}

#[test]
fn an_unfinished_event_is_kept_back() {
    let mut decoder = Decoder::default();
    assert!(decoder.push(b"data: half\n").unwrap().is_empty());
    assert_eq!(decoder.push(b"\n").unwrap(), ["half"]);
}

#[test]
fn a_line_without_end_is_refused() {
    let mut decoder = Decoder::default();
    assert_eq!(decoder.push(&vec![b'x'; EVENT_BYTES_MAX + 1]), Err(TooLong));
}
