//! A group of which only one rank exists: what it sends to each of the others comes back as if from there.
//!
//! A frame for rank r names slots of r and rows of tokens here. Read as a frame from r, it is what a rank with as many
//! other tokens would send: so this rank gets the load that it would have if all ranks had as much work and a layout
//! of experts alike, and its answers to r are as long as r's answers to it. The numbers mean nothing: for measurements.

use std::fmt;

use switchyard_moe::ids::{EpRank, GroupEpoch};

use super::{AbortHandle, AllToAll, Direction, Error, Phase};

#[cfg(test)]
mod tests;

/// A frame that can come back.
pub trait Echo: Send + fmt::Debug {
    /// Becomes what `sent` is.
    fn receive(&mut self, sent: &Self);

    /// The slot of each assignment of a dispatch frame whose rows have `num_topk` experts.
    fn slots(&self, num_topk: usize) -> Vec<u32>;
}

/// The one rank of a group of `world_size`.
#[derive(Debug)]
pub struct Loopback<T> {
    world_size: usize,
    census: Option<Census>,
    _buffers: std::marker::PhantomData<fn() -> T>,
}

/// What came in one step, of the experts here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Experts of a row.
    pub num_topk: usize,
    /// Slots that had rows, by layer.
    pub num_hit: Vec<usize>,
    /// Rows times experts, by layer.
    pub num_assignments: Vec<usize>,
}

#[derive(Debug)]
struct NeverAborted;

// === impl Loopback ===

impl<T> Loopback<T> {
    /// Rank 0 of `world_size`.
    #[must_use]
    pub fn new(world_size: usize) -> Self {
        Self { world_size, census: None, _buffers: std::marker::PhantomData }
    }

    /// Counts from now on, for rows of `num_topk` experts. Frames on a device are then brought to the host.
    pub fn begin_census(&mut self, num_topk: usize) {
        self.census = Some(Census { num_topk, ..Census::default() });
    }

    /// Counts no longer.
    pub fn end_census(&mut self) -> Census {
        self.census.take().unwrap_or_default()
    }
}

impl<T: Echo> AllToAll for Loopback<T> {
    type Buffer = T;

    fn rank(&self) -> EpRank {
        EpRank(0)
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn epoch(&self) -> GroupEpoch {
        GroupEpoch(1)
    }

    fn exchange(&mut self, phase: Phase, outbound: &[T], inbound: &mut [T]) -> Result<(), Error> {
        for (sent, received) in outbound.iter().zip(&mut *inbound) {
            received.receive(sent);
        }
        if let (Direction::Dispatch, Some(census)) = (phase.direction, &mut self.census) {
            let num_topk = census.num_topk;
            let mut slots: Vec<_> =
                inbound.iter().flat_map(|frame| frame.slots(num_topk)).collect();
            census.num_assignments.push(slots.len());
            slots.sort_unstable();
            slots.dedup();
            census.num_hit.push(slots.len());
        }
        Ok(())
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        Box::new(NeverAborted)
    }
}

impl AbortHandle for NeverAborted {
    fn abort(&self) {}

    fn is_aborted(&self) -> bool {
        false
    }
}

/// Frames as [`crate::experts::frame`] describes them.
impl Echo for Vec<u8> {
    fn receive(&mut self, sent: &Self) {
        self.clone_from(sent);
    }

    fn slots(&self, _num_topk: usize) -> Vec<u32> {
        let words = self.as_chunks().0;
        let [num_rows, num_assignments, rest @ ..] = words else { return Vec::new() };
        let (num_rows, num_assignments) =
            (u32::from_le_bytes(*num_rows) as usize, u32::from_le_bytes(*num_assignments) as usize);
        let pairs = rest.get(num_rows..).unwrap_or_default().chunks(2);
        pairs.take(num_assignments).map(|pair| u32::from_le_bytes(pair[0])).collect()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Echo;
    use crate::backend::cuda::CudaBuffer;

    /// Bytes before a frame's entries.
    const HEADER_BYTES: usize = 16;

    /// Frames as `switchyard_kernels::cuda::exchange` describes them.
    impl Echo for CudaBuffer {
        fn receive(&mut self, sent: &Self) {
            self.set_capacity(sent.capacity());
            let len = sent.frame().len();
            self.frame_mut().resize(len);
            self.frame_mut().memory_mut().copy_from(0, sent.frame().memory(), 0, len);
        }

        fn slots(&self, num_topk: usize) -> Vec<u32> {
            let num_bytes = self.capacity().rows * num_topk * 8;
            if HEADER_BYTES + num_bytes > self.frame().len() {
                return Vec::new();
            }
            let entries = self.frame().memory().read(HEADER_BYTES, num_bytes);
            let slots = entries.as_chunks().0.iter().map(|&[a, b, c, d, ..]: &[u8; 8]| {
                // One more than the slot; 0 where there is none.
                u32::from_le_bytes([a, b, c, d]).checked_sub(1)
            });
            slots.flatten().collect()
        }
    }
}
