//! Layout of what travels between two ranks once they are connected.

use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};

use super::super::failure::{Cause, Failure};
use super::super::{Direction, Phase};

#[cfg(test)]
mod tests;

/// Largest frame that is sent or accepted. The largest that is needed is `combine` of a full prefill step:
/// 8192 tokens x 7168 x 4 bytes x top-8, 1.9 GB.
pub const FRAME_BYTES_MAX: u64 = 1 << 31;

/// Bytes of a [`Header`] on the wire.
pub(super) const HEADER_BYTES: usize = 40;

/// Longest explanation in a notice; longer ones are cut.
pub(super) const NOTICE_DETAIL_BYTES_MAX: usize = 512;

/// Longest body of a notice: cause, two numbers, explanation.
pub(super) const NOTICE_BYTES_MAX: usize = 17 + NOTICE_DETAIL_BYTES_MAX;

const MAGIC: [u8; 4] = *b"SWYF";

/// Header of every frame, little-endian:
///
/// | bytes  | field                                      |
/// |--------|--------------------------------------------|
/// | 0..4   | magic `SWYF`                               |
/// | 4      | kind: 1 rows, 2 notice                     |
/// | 5      | direction: 0 none, 1 dispatch, 2 combine   |
/// | 6..8   | zero                                       |
/// | 8..12  | layer                                      |
/// | 12..16 | rank: the sender, or a notice's culprit    |
/// | 16..24 | epoch                                      |
/// | 24..32 | step                                       |
/// | 32..40 | bytes that follow                          |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Sender of rows, culprit of a notice.
    pub(super) rank: EpRank,
    pub(super) epoch: GroupEpoch,
    /// Always present on rows.
    pub(super) phase: Option<Phase>,
    /// Bytes that follow the header.
    pub(super) len: u64,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sender's buffer for one phase.
    Rows,
    /// The sender stops; the body says why.
    Notice,
}

// === impl Header ===

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = match self.kind {
            Kind::Rows => 1,
            Kind::Notice => 2,
        };
        if let Some(phase) = self.phase {
            bytes[5] = match phase.direction {
                Direction::Dispatch => 1,
                Direction::Combine => 2,
            };
            bytes[8..12].copy_from_slice(&phase.layer.to_le_bytes());
            bytes[24..32].copy_from_slice(&phase.step.0.to_le_bytes());
        }
        bytes[12..16].copy_from_slice(&self.rank.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Reads a header, or says what is wrong with it.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        if bytes[0..4] != MAGIC {
            return Err(format!("it begins with {:02x?}, not {MAGIC:02x?}", &bytes[0..4]));
        }
        let kind = match bytes[4] {
            1 => Kind::Rows,
            2 => Kind::Notice,
            other => return Err(format!("its kind is {other}, known are 1 and 2")),
        };
        let direction = match bytes[5] {
            0 if kind == Kind::Notice => None,
            1 => Some(Direction::Dispatch),
            2 => Some(Direction::Combine),
            other => return Err(format!("its direction is {other}, known are 1 and 2")),
        };
        let step = StepId(u64_at(bytes, 24));
        let layer = u32_at(bytes, 8);
        let header = Self {
            kind,
            rank: EpRank(u32_at(bytes, 12)),
            epoch: GroupEpoch(u64_at(bytes, 16)),
            phase: direction.map(|direction| Phase { step, layer, direction }),
            len: u64_at(bytes, 32),
        };
        let max = match kind {
            Kind::Rows => FRAME_BYTES_MAX,
            Kind::Notice => NOTICE_BYTES_MAX as u64,
        };
        if header.len > max {
            return Err(format!("it announces {} bytes, the limit is {max}", header.len));
        }
        Ok(header)
    }
}

// === notices ===

/// The whole frame, header included, that tells a peer of `failure`.
pub(super) fn encode_notice(failure: &Failure, epoch: GroupEpoch) -> Vec<u8> {
    let (cause, first, second, detail) = match &failure.cause {
        Cause::Lost => (1, 0, 0, ""),
        Cause::Timeout { waited_ms } => (2, *waited_ms, 0, ""),
        Cause::StaleEpoch { theirs, ours } => (3, theirs.0, ours.0, ""),
        Cause::Malformed { detail } => (4, 0, 0, detail.as_str()),
    };
    let detail = &detail.as_bytes()[..detail.len().min(NOTICE_DETAIL_BYTES_MAX)];
    let len = 17 + detail.len();
    let header = Header {
        kind: Kind::Notice,
        rank: failure.culprit,
        epoch,
        phase: failure.phase,
        len: len as u64,
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + len);
    bytes.extend_from_slice(&header.encode());
    bytes.push(cause);
    bytes.extend_from_slice(&u64::to_le_bytes(first));
    bytes.extend_from_slice(&u64::to_le_bytes(second));
    bytes.extend_from_slice(detail);
    bytes
}

/// Reads a notice from its header and body, or says what is wrong with it.
pub(super) fn decode_notice(header: &Header, body: &[u8]) -> Result<Failure, String> {
    if body.len() < 17 {
        return Err(format!("its notice has {} bytes, at least 17 belong to it", body.len()));
    }
    let (first, second) = (u64_at(body, 1), u64_at(body, 9));
    let cause = match body[0] {
        1 => Cause::Lost,
        2 => Cause::Timeout { waited_ms: first },
        3 => Cause::StaleEpoch { theirs: GroupEpoch(first), ours: GroupEpoch(second) },
        4 => Cause::Malformed { detail: String::from_utf8_lossy(&body[17..]).into_owned() },
        other => return Err(format!("its notice has cause {other}, known are 1 to 4")),
    };
    Ok(Failure { culprit: header.rank, phase: header.phase, cause })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
