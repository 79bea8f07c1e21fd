//! Server-sent events: bytes in, `data` payloads out.

#[cfg(test)]
mod tests;

/// Longest event that is accepted, in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Splits a byte stream into events. Holds the bytes of an unfinished line and the lines of an unfinished event.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    line: Vec<u8>,
    data: Option<String>,
}

/// The server sent an event that no client of ours could want.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Decoder {
    /// Takes more bytes, split anywhere; returns the payloads of the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut payloads = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                payloads.extend(self.end_line());
            } else if self.line.len() == EVENT_BYTES_MAX {
                return Err(TooLong);
            } else {
                self.line.push(byte);
            }
        }
        Ok(payloads)
    }

    /// An empty line ends an event; other lines than `data` carry nothing that we use.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(value) = line.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}
