//! Frames of a GPU by way of the host, over any collective between hosts: for GPUs that NCCL does not connect.
//!
//! What travels is the frame's capacity (rows `u32`, assignments `u32`, little-endian), then its bytes.

use switchyard_kernels::cuda::exchange::FrameCapacity;
use switchyard_moe::ids::{EpRank, GroupEpoch};

use super::{AbortHandle, AllToAll, Error, Phase};
use crate::backend::cuda::CudaBuffer;
use crate::backend::peer;

/// Bytes before a frame's own.
const HEADER_BYTES: usize = 8;

/// A collective of device memory over one of bytes.
#[derive(Debug)]
pub struct Staged<'a> {
    host: &'a mut dyn AllToAll<Buffer = Vec<u8>>,
    memory: &'a mut StagingMemory,
}

/// What [`Staged`] copies through; kept from step to step.
#[derive(Debug, Default)]
pub struct StagingMemory {
    outbound: Vec<Vec<u8>>,
    inbound: Vec<Vec<u8>>,
}

// === impl Staged ===

impl<'a> Staged<'a> {
    /// Carries frames over `host`.
    #[must_use]
    pub fn new(
        host: &'a mut dyn AllToAll<Buffer = Vec<u8>>,
        memory: &'a mut StagingMemory,
    ) -> Self {
        Self { host, memory }
    }
}

impl AllToAll for Staged<'_> {
    type Buffer = CudaBuffer;

    fn rank(&self) -> EpRank {
        self.host.rank()
    }

    fn world_size(&self) -> usize {
        self.host.world_size()
    }

    fn epoch(&self) -> GroupEpoch {
        self.host.epoch()
    }

    fn exchange(
        &mut self,
        phase: Phase,
        outbound: &[CudaBuffer],
        inbound: &mut [CudaBuffer],
    ) -> Result<(), Error> {
        let StagingMemory { outbound: out, inbound: into } = &mut *self.memory;
        out.resize_with(outbound.len(), Vec::new);
        into.resize_with(inbound.len(), Vec::new);
        for (buffer, bytes) in outbound.iter().zip(&mut *out) {
            let FrameCapacity { rows, assignments } = buffer.capacity();
            bytes.clear();
            bytes.extend((rows as u32).to_le_bytes());
            bytes.extend((assignments as u32).to_le_bytes());
            bytes.extend(buffer.frame().memory().read(0, buffer.frame().len()));
        }
        self.host.exchange(phase, out, into)?;
        for (rank, (bytes, buffer)) in into.iter().zip(inbound).enumerate() {
            let Some((header, bytes)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
                let detail = format!("{} bytes hold no header", bytes.len());
                return Err(Error::Malformed { culprit: peer(rank), phase, detail });
            };
            let [r0, r1, r2, r3, a0, a1, a2, a3] = *header;
            buffer.set_capacity(FrameCapacity {
                rows: u32::from_le_bytes([r0, r1, r2, r3]) as usize,
                assignments: u32::from_le_bytes([a0, a1, a2, a3]) as usize,
            });
            buffer.frame_mut().resize(bytes.len());
            buffer.frame_mut().memory_mut().write(0, bytes);
        }
        Ok(())
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        self.host.abort_handle()
    }
}
