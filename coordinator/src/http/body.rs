//! A request's body, bounded in size and time.

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use bytes::BytesMut;
use futures::StreamExt as _;

use super::Error;
use crate::options::Limits;

/// How much of an oversized body is read and thrown away, as a multiple of the limit. A client that is still sending
/// when the connection closes sees a reset instead of our answer.
const DISCARD_FACTOR: usize = 8;

/// Reads a JSON body.
///
/// # Errors
/// [`Error::ContentType`], [`Error::ContentEncoding`], [`Error::BodyTooLarge`], [`Error::BodyTimeout`], [`Error::BodyBroken`].
pub async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, Error> {
    let after = limits.body_read_timeout;
    let read = async {
        check_content_type(headers)?;
        check_content_encoding(headers)?;
        collect(headers, body, limits.body_bytes_max).await
    };
    tokio::time::timeout(after, read).await.unwrap_or(Err(Error::BodyTimeout { after }))
}

/// Nothing is decompressed, so nothing small can become big.
///
/// # Errors
/// [`Error::ContentEncoding`].
pub(super) fn check_content_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let is_identity = |encoding: &&HeaderValue| {
        encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")
    };
    match headers.get_all(CONTENT_ENCODING).iter().find(|encoding| !is_identity(encoding)) {
        Some(encoding) => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            Err(Error::ContentEncoding { encoding })
        }
        None => Ok(()),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Error> {
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let content_type = String::from_utf8_lossy(content_type.as_bytes());
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let is_json = essence.eq_ignore_ascii_case("application/json")
        || essence.to_ascii_lowercase().ends_with("+json");
    if is_json {
        Ok(())
    } else {
        Err(Error::ContentType {
            content_type: content_type.into_owned(),
            wanted: "application/json",
        })
    }
}

async fn collect(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, Error> {
    let discard_max = max.saturating_mul(DISCARD_FACTOR);
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > discard_max {
        return Err(Error::BodyTooLarge { max, unread: true });
    }
    let mut bytes = BytesMut::with_capacity(announced.min(max));
    let mut received = 0;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(Error::BodyBroken)?;
        received += piece.len();
        if received > discard_max {
            return Err(Error::BodyTooLarge { max, unread: true });
        }
        if received > max {
            bytes = BytesMut::new();
        } else {
            bytes.extend_from_slice(&piece);
        }
    }
    if received > max {
        Err(Error::BodyTooLarge { max, unread: false })
    } else {
        Ok(bytes.freeze())
    }
}
