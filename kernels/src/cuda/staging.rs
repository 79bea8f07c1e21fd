//! Big copies to the device by way of page-locked buffers, which the device reads at the bus's speed by itself.
//!
//! While one buffer is on its way, several threads fill the next. From memory that is not page-locked the driver would
//! do both in turn, on one thread.

use rayon::prelude::*;

use super::{Address, Error};

#[cfg(test)]
mod tests;

/// Copies of fewer bytes are not worth the threads.
pub(super) const BYTES_MIN: usize = 1 << 20;
/// What one thread copies at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Buffers that a device can read, each with room for [`buffer_bytes`](Self::buffer_bytes).
pub(super) trait Buffers {
    /// How many there are, at least one.
    fn num_buffers(&self) -> usize;

    /// Size of each, at least one byte.
    fn buffer_bytes(&self) -> usize;

    /// Waits until nothing reads buffer `index` any more, then lends it.
    fn lend(&mut self, index: usize) -> Result<&mut [u8], Error>;

    /// Queues the copy of the first `num_bytes` of buffer `index`, after all work queued before.
    ///
    /// # Safety
    ///
    /// `to` is the start of as many bytes on the device.
    unsafe fn send(&mut self, index: usize, num_bytes: usize, to: Address) -> Result<(), Error>;
}

/// Buffers in turn.
#[derive(Debug)]
pub(super) struct Staging<B> {
    buffers: B,
    /// The one whose last copy is the longest ago.
    next: usize,
}

// === impl Staging ===

impl<B: Buffers> Staging<B> {
    pub(super) fn new(buffers: B) -> Self {
        Self { buffers, next: 0 }
    }

    /// Queues the copy of `from`, which is free again when this returns.
    ///
    /// # Safety
    ///
    /// `to` is the start of as many bytes on the device.
    pub(super) unsafe fn upload(&mut self, from: &[u8], to: Address) -> Result<(), Error> {
        let mut to = to;
        for part in from.chunks(self.buffers.buffer_bytes()) {
            let index = self.next;
            fill(&mut self.buffers.lend(index)?[..part.len()], part);
            // SAFETY: a part of what the caller promises.
            unsafe { self.buffers.send(index, part.len(), to) }?;
            self.next = (index + 1) % self.buffers.num_buffers();
            to += part.len() as Address;
        }
        Ok(())
    }
}

/// Copies with several threads: also what is read from a file for the first time then comes in several streams.
fn fill(to: &mut [u8], from: &[u8]) {
    let pieces = to.par_chunks_mut(PIECE_BYTES).zip(from.par_chunks(PIECE_BYTES));
    pieces.for_each(|(to, from)| to.copy_from_slice(from));
}
