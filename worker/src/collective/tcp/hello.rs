//! The first words between two ranks: who dials, for which epoch of which group, and whether it is welcome.

use std::io;

use switchyard_moe::ids::{EpRank, GroupEpoch};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

#[cfg(test)]
mod tests;

/// Grows with every change to the frames between ranks.
pub(super) const PROTOCOL_VERSION: u16 = 1;

/// Bytes of a [`Hello`] on the wire.
pub(super) const HELLO_BYTES: usize = 64;

/// Longest refusal; longer ones are cut.
const REFUSAL_BYTES_MAX: usize = 512;

const MAGIC: [u8; 8] = *b"SWYHELLO";

/// What the dialling rank says first, little-endian:
///
/// | bytes  | field                                            |
/// |--------|--------------------------------------------------|
/// | 0..8   | magic `SWYHELLO`                                 |
/// | 8..10  | protocol version                                 |
/// | 10..12 | zero                                             |
/// | 12..16 | rank that dials                                  |
/// | 16..20 | rank that it wants to reach                      |
/// | 20..24 | world size                                       |
/// | 24..32 | epoch                                            |
/// | 32..64 | SHA-256 that names the checkpoint and numerics   |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) from: EpRank,
    pub(super) to: EpRank,
    pub(super) world_size: u32,
    pub(super) epoch: GroupEpoch,
    pub(super) fingerprint: [u8; 32],
}

// === impl Hello ===

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.world_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.fingerprint);
        bytes
    }

    /// Reads a hello. The outer error is a stranger, to whom nothing is said; the inner one is a refusal.
    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Result<Self, String>, NotAHello> {
        if bytes[0..8] != MAGIC {
            return Err(NotAHello);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != PROTOCOL_VERSION {
            return Ok(Err(format!(
                "it speaks version {version} of the rank protocol, this rank speaks {PROTOCOL_VERSION}"
            )));
        }
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Ok(Self {
            from: EpRank(u32_at(12)),
            to: EpRank(u32_at(16)),
            world_size: u32_at(20),
            epoch: GroupEpoch(u64::from_le_bytes(std::array::from_fn(|i| bytes[24 + i]))),
            fingerprint: std::array::from_fn(|i| bytes[32 + i]),
        }))
    }
}

/// The bytes come from somebody who does not speak this protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAHello;

// === the answer: a status byte, a length, the refusal ===

/// Answers that the dialling rank is now a peer.
pub(super) async fn welcome(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(&[0, 0, 0]).await?;
    // TLS may hold bytes back, and the stream leaves the runtime.
    stream.flush().await
}

/// Answers why the dialling rank cannot be a peer.
pub(super) async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &str,
) -> io::Result<()> {
    let message = &message.as_bytes()[..message.len().min(REFUSAL_BYTES_MAX)];
    let mut answer = vec![1];
    answer.extend_from_slice(&(message.len() as u16).to_le_bytes());
    answer.extend_from_slice(message);
    stream.write_all(&answer).await?;
    stream.flush().await
}

/// Reads the answer: the inner error is the refusal.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Result<(), String>> {
    let mut head = [0; 3];
    stream.read_exact(&mut head).await?;
    let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
    match head[0] {
        0 if len == 0 => Ok(Ok(())),
        1 if len <= REFUSAL_BYTES_MAX => {
            let mut message = vec![0; len];
            stream.read_exact(&mut message).await?;
            Ok(Err(String::from_utf8_lossy(&message).into_owned()))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the answer begins with {head:02x?}, which is no rank's"),
        )),
    }
}
