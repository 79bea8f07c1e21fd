use super::*;

fn hello() -> Hello {
    let (from, to, epoch) = (EpRank(3), EpRank(1), GroupEpoch(7));
    Hello { from, to, world_size: 4, epoch, fingerprint: std::array::from_fn(|i| i as u8) }
}

#[test]
fn a_hello_survives_the_wire() {
    assert_eq!(Hello::decode(&hello().encode()), Ok(Ok(hello())));
}

#[test]
fn strangers_and_other_versions_are_told_apart() {
    let mut bytes = hello().encode();
    bytes[8] = 9;
    let refusal = Hello::decode(&bytes).unwrap().unwrap_err();
    assert_eq!(refusal, "it speaks version 9 of the rank protocol, this rank speaks 1");
    let mut bytes = [b' '; HELLO_BYTES];
    bytes[..16].copy_from_slice(b"GET / HTTP/1.1\r\n");
    assert_eq!(Hello::decode(&bytes), Err(NotAHello));
}

#[tokio::test]
async fn an_answer_survives_the_wire() {
    let mut wire = Vec::new();
    welcome(&mut wire).await.unwrap();
    refuse(&mut wire, "it is too late").await.unwrap();
    refuse(&mut wire, &"x".repeat(9000)).await.unwrap();
    wire.extend_from_slice(b"HTTP/1.1 400 Bad Request");
    let mut wire = wire.as_slice();
    assert_eq!(answer(&mut wire).await.unwrap(), Ok(()));
    assert_eq!(answer(&mut wire).await.unwrap(), Err("it is too late".to_owned()));
    assert_eq!(answer(&mut wire).await.unwrap(), Err("x".repeat(REFUSAL_BYTES_MAX)));
    let error = answer(&mut wire).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}
