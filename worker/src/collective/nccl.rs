//! The all-to-all between GPUs: rows go from device to device through NCCL, and everything that has to do with who is
//! there goes through the mesh of the ranks' hosts.
//!
//! Before each exchange the hosts tell each other the sizes of their frames. So every rank knows that all others have come to
//! this phase of this epoch before it gives NCCL anything to wait for, and a rank that is gone or late is named by the
//! mesh, as it would be on CPUs. A peer that dies within NCCL's part is found by the roll call that follows: the
//! communicator is aborted, and the hosts exchange once more.

use std::fmt;
use std::time::Duration;

use switchyard_kernels::cuda::exchange::FrameCapacity;
use switchyard_kernels::cuda::nccl::{Communicator, NcclError, Patience, UniqueId, unique_id};
use switchyard_kernels::cuda::{Gpu, Memory};
use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use tokio::time::Instant;

use super::tcp::FRAME_BYTES_MAX;
use super::{AbortHandle, AllToAll, Direction, Error, Phase};
use crate::backend::cuda::CudaBuffer;
use crate::backend::peer;

#[cfg(test)]
#[cfg(feature = "cuda-emulator")]
mod tests;

/// Bytes by which hosts tell each other of a frame: its rows `u32`, its assignments `u32`, its length `u64`.
const NOTE_BYTES: usize = 16;
/// The layer whose exchange, which no model has, is the roll call of a step.
const ROLL_CALL: u32 = u32::MAX;
/// The layer whose exchange carries the communicator's id.
const BOOTSTRAP: u32 = u32::MAX - 1;

/// What moves bytes between the devices of a group; see [`Communicator`].
pub trait DeviceExchange: fmt::Debug + Send {
    /// Exchanges a buffer with every rank and returns when it has arrived; see [`Communicator::exchange`].
    ///
    /// # Errors
    /// See [`NcclError`]. Nothing can be exchanged any more then.
    fn exchange(
        &mut self,
        outbound: &[(&Memory<u8>, usize)],
        inbound: &mut [(&mut Memory<u8>, usize)],
        patience: &Patience<'_>,
    ) -> Result<(), NcclError>;
}

impl DeviceExchange for Communicator {
    fn exchange(
        &mut self,
        outbound: &[(&Memory<u8>, usize)],
        inbound: &mut [(&mut Memory<u8>, usize)],
        patience: &Patience<'_>,
    ) -> Result<(), NcclError> {
        Self::exchange(self, outbound, inbound, patience)?;
        self.wait(patience)
    }
}

/// The devices of one epoch's group.
#[derive(Debug)]
pub struct Fabric<D = Communicator> {
    communicator: D,
    epoch: GroupEpoch,
    deadline: Duration,
    /// What hosts tell each other.
    outbound: Vec<Vec<u8>>,
    inbound: Vec<Vec<u8>>,
}

/// A collective of device memory over a [`Fabric`] and the hosts' mesh.
#[derive(Debug)]
pub struct Nccl<'a, D = Communicator> {
    host: &'a mut dyn AllToAll<Buffer = Vec<u8>>,
    fabric: &'a mut Fabric<D>,
}

// === impl Fabric ===

impl Fabric {
    /// Connects the GPUs of the group of `host`: rank 0 makes an id, and the mesh brings it to all.
    ///
    /// # Errors
    /// When a rank does not come, or NCCL does not connect them.
    pub fn form(
        gpu: &Gpu,
        host: &mut dyn AllToAll<Buffer = Vec<u8>>,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let (rank, world_size) = (host.rank(), host.world_size());
        let phase = Phase { step: StepId(0), layer: BOOTSTRAP, direction: Direction::Dispatch };
        let failed = |detail: String| Error::Fabric { observer: rank, phase, detail };
        let mut outbound = vec![Vec::new(); world_size];
        if rank == EpRank(0) {
            let id = unique_id().map_err(|error| failed(error.to_string()))?;
            outbound.fill(id.to_vec());
        }
        let mut inbound = vec![Vec::new(); world_size];
        host.exchange(phase, &outbound, &mut inbound)?;
        let id: UniqueId = inbound[0].as_slice().try_into().map_err(|_| Error::Malformed {
            culprit: EpRank(0),
            phase,
            detail: format!("{} bytes are no id", inbound[0].len()),
        })?;
        let abort = host.abort_handle();
        let place = (rank.0 as usize, world_size);
        let communicator = with_patience(deadline, &*abort, |patience| {
            Communicator::new(gpu, &id, place, patience)
        });
        let communicator = communicator.map_err(|error| match error {
            NcclError::Aborted { .. } => Error::Aborted { phase },
            NcclError::Failed(_) | NcclError::Deadline { .. } => failed(error.to_string()),
        })?;
        Ok(Self::over(communicator, host, deadline))
    }
}

impl<D> Fabric<D> {
    /// The fabric of a group whose devices are connected.
    fn over(communicator: D, host: &dyn AllToAll<Buffer = Vec<u8>>, deadline: Duration) -> Self {
        let buffers = vec![Vec::new(); host.world_size()];
        let (outbound, inbound) = (buffers.clone(), buffers);
        Self { communicator, epoch: host.epoch(), deadline, outbound, inbound }
    }

    /// The epoch that it belongs to.
    #[must_use]
    pub fn epoch(&self) -> GroupEpoch {
        self.epoch
    }
}

/// Calls `wait` with a deadline that begins now and ends early when `abort` is used.
fn with_patience<R>(
    deadline: Duration,
    abort: &dyn AbortHandle,
    wait: impl FnOnce(&Patience<'_>) -> R,
) -> R {
    let began = Instant::now();
    let now = || began.elapsed();
    let is_aborted = || abort.is_aborted();
    wait(&Patience { now: &now, deadline, is_aborted: &is_aborted })
}

// === impl Nccl ===

impl<'a, D> Nccl<'a, D> {
    /// Carries frames over `fabric`, whose ranks meet over `host`.
    #[must_use]
    pub fn new(host: &'a mut dyn AllToAll<Buffer = Vec<u8>>, fabric: &'a mut Fabric<D>) -> Self {
        Self { host, fabric }
    }

    /// Tells every rank the size of its frame, and makes room for theirs.
    fn agree(
        &mut self,
        phase: Phase,
        outbound: &[CudaBuffer],
        inbound: &mut [CudaBuffer],
    ) -> Result<(), Error> {
        let Fabric { outbound: out, inbound: into, .. } = &mut *self.fabric;
        for (buffer, note) in outbound.iter().zip(&mut *out) {
            let FrameCapacity { rows, assignments } = buffer.capacity();
            note.clear();
            note.extend((rows as u32).to_le_bytes());
            note.extend((assignments as u32).to_le_bytes());
            note.extend((buffer.frame().len() as u64).to_le_bytes());
        }
        self.host.exchange(phase, out, into)?;
        for (rank, (note, buffer)) in into.iter().zip(inbound).enumerate() {
            let Ok(note) = <[u8; NOTE_BYTES]>::try_from(note.as_slice()) else {
                let detail = format!("{} bytes describe no frame", note.len());
                return Err(Error::Malformed { culprit: peer(rank), phase, detail });
            };
            let [r0, r1, r2, r3, a0, a1, a2, a3, len @ ..] = note;
            let len = u64::from_le_bytes(len);
            if len > FRAME_BYTES_MAX {
                let detail = format!("a frame of {len} bytes, the limit is {FRAME_BYTES_MAX}");
                return Err(Error::Malformed { culprit: peer(rank), phase, detail });
            }
            buffer.set_capacity(FrameCapacity {
                rows: u32::from_le_bytes([r0, r1, r2, r3]) as usize,
                assignments: u32::from_le_bytes([a0, a1, a2, a3]) as usize,
            });
            buffer.frame_mut().resize(len as usize);
        }
        Ok(())
    }

    /// Who is to blame for `error`: all that are left come to one more exchange, and who does not is named by the mesh.
    fn roll_call(&mut self, phase: Phase, error: &NcclError) -> Error {
        if let NcclError::Aborted { .. } = error {
            return Error::Aborted { phase };
        }
        let Fabric { outbound, inbound, .. } = &mut *self.fabric;
        outbound.iter_mut().for_each(Vec::clear);
        let roll_call = Phase { layer: ROLL_CALL, ..phase };
        match self.host.exchange(roll_call, outbound, inbound) {
            Ok(()) => {
                let (observer, detail) = (self.host.rank(), error.to_string());
                Error::Fabric { observer, phase, detail }
            }
            Err(named) => named,
        }
    }
}

impl<D: DeviceExchange> AllToAll for Nccl<'_, D> {
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
        self.agree(phase, outbound, inbound)?;
        let abort = self.host.abort_handle();
        let Fabric { communicator, deadline, .. } = &mut *self.fabric;
        let out: Vec<_> = outbound.iter().map(sized).collect();
        let mut into: Vec<(&mut Memory<u8>, usize)> = inbound
            .iter_mut()
            .map(|buffer| {
                let len = buffer.frame().len();
                (buffer.frame_mut().memory_mut(), len)
            })
            .collect();
        let exchanged = with_patience(*deadline, &*abort, |patience| {
            communicator.exchange(&out, &mut into, patience)
        });
        exchanged.map_err(|error| self.roll_call(phase, &error))
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        self.host.abort_handle()
    }
}

fn sized(buffer: &CudaBuffer) -> (&Memory<u8>, usize) {
    (buffer.frame().memory(), buffer.frame().len())
}
