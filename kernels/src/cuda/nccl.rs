//! Sends and receives between the GPUs of a group, through NCCL.
//!
//! The communicator is non-blocking: no call of ours waits for a peer inside NCCL. All waiting is done here, with a
//! deadline, and ends in `ncclCommAbort` on a thread of its own, because that call may itself not return.

use std::ffi::c_int;
use std::fmt;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use cudarc::nccl::{result, sys};

use super::{Error, Gpu, Memory};

#[cfg(test)]
mod tests;

/// What a communicator's ranks have in common; made by one of them.
pub type UniqueId = [u8; 128];

/// Oldest NCCL whose configuration has the fields that are set here, as NCCL counts versions.
const CONFIG_VERSION: u32 = 2_30_00;
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// A configuration field that is left to NCCL.
const UNDEFINED: c_int = c_int::MIN;
/// How long `ncclCommAbort` may take before its thread is left to itself.
const ABORT_DEADLINE: Duration = Duration::from_secs(5);
/// Between looks at a communicator that is not ready.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Time, which this crate does not read by itself: how long it is since some fixed moment.
pub type Clock<'a> = &'a dyn Fn() -> Duration;

/// When to stop waiting for peers.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// The time.
    pub now: Clock<'a>,
    /// How long to wait from the call on.
    pub deadline: Duration,
    /// Whether somebody wants the wait to end at once.
    pub is_aborted: &'a dyn Fn() -> bool,
}

/// Why an exchange did not happen. The communicator is dead then.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NcclError {
    /// NCCL, or the device, reported an error.
    #[error("{0}")]
    Failed(#[from] Error),
    /// Peers did not come in time.
    #[error("NCCL was not done with {doing} within {} ms", .deadline.as_millis())]
    Deadline {
        /// What was waited for.
        doing: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// Somebody ended the wait.
    #[error("NCCL was aborted in {doing}")]
    Aborted {
        /// What was waited for.
        doing: &'static str,
    },
}

/// One rank of a communicator.
pub struct Communicator {
    comm: Handle,
    gpu: Gpu,
    rank: usize,
    world_size: usize,
    is_dead: bool,
}

/// NCCL's handle, which may be used by any one thread at a time.
#[derive(Clone, Copy)]
struct Handle(sys::ncclComm_t);

// SAFETY: NCCL binds communicators to devices, not to threads.
unsafe impl Send for Handle {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator")
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .field("is_dead", &self.is_dead)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Patience<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// A new id, for one rank to make and all to be told.
///
/// # Errors
/// When NCCL is missing or fails.
pub fn unique_id() -> Result<UniqueId, Error> {
    require_nccl()?;
    let id = result::get_uniqueid().map_err(|error| failed("ncclGetUniqueId", error.0))?;
    Ok(id.internal.map(|c| c.to_ne_bytes()[0]))
}

fn require_nccl() -> Result<(), Error> {
    // SAFETY: loads the library, which has no constructors with preconditions.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::MissingLibrary {
        library: "NCCL (libnccl.so)",
        advice: "install the package nvidia-nccl-cu13 and put its folder into LD_LIBRARY_PATH, or exchange by way of the host",
    })
}

fn failed(doing: &str, status: sys::ncclResult_t) -> Error {
    Error::Driver { doing: doing.to_owned(), detail: format!("{status:?}") }
}

fn config() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

/// Looks again and again until it is done, or patience ends.
fn wait_until(
    doing: &'static str,
    patience: &Patience<'_>,
    mut is_done: impl FnMut() -> Result<bool, Error>,
) -> Result<(), NcclError> {
    let began = (patience.now)();
    loop {
        if is_done()? {
            return Ok(());
        }
        if (patience.is_aborted)() {
            return Err(NcclError::Aborted { doing });
        }
        if (patience.now)().saturating_sub(began) >= patience.deadline {
            return Err(NcclError::Deadline { doing, deadline: patience.deadline });
        }
        thread::sleep(POLL_INTERVAL);
    }
}

// === impl Communicator ===

impl Communicator {
    /// Becomes rank `rank` of the `world_size` ranks that were told `id`. Returns when all of them are connected.
    ///
    /// # Errors
    /// See [`NcclError`].
    pub fn new(
        gpu: &Gpu,
        id: &UniqueId,
        (rank, world_size): (usize, usize),
        patience: &Patience<'_>,
    ) -> Result<Self, NcclError> {
        require_nccl()?;
        gpu.bind()?;
        let id = sys::ncclUniqueId { internal: id.map(|byte| i8::from_ne_bytes([byte])) };
        let (mut config, mut comm) = (config(), std::ptr::null_mut());
        let (world, me) = (world_size as c_int, rank as c_int);
        // SAFETY: both pointers are valid for the call.
        let begun =
            unsafe { result::comm_init_rank_config(&raw mut comm, world, id, me, &raw mut config) };
        begun.map_err(|error| failed("ncclCommInitRankConfig", error.0))?;
        let comm = Handle(comm);
        let mut this = Self { comm, gpu: gpu.clone(), rank, world_size, is_dead: false };
        this.settle("forming a group", patience)?;
        Ok(this)
    }

    /// Queues the exchange of one buffer with every rank, itself included: the first `outbound[r].1` bytes of
    /// `outbound[r].0` for rank `r`, and `inbound[r].1` bytes from it. Both sides of a pair know the same length, and
    /// nothing is sent for length 0.
    ///
    /// # Errors
    /// See [`NcclError`].
    ///
    /// # Panics
    ///
    /// If there are not as many buffers as ranks, or one is too short.
    pub fn exchange(
        &mut self,
        outbound: &[(&Memory<u8>, usize)],
        inbound: &mut [(&mut Memory<u8>, usize)],
        patience: &Patience<'_>,
    ) -> Result<(), NcclError> {
        assert_eq!(outbound.len(), self.world_size, "one outbound buffer per rank");
        assert_eq!(inbound.len(), self.world_size, "one inbound buffer per rank");
        let (from, len) = outbound[self.rank];
        inbound[self.rank].0.copy_from(0, from, 0, len);
        self.gpu.bind()?;
        result::group_start().map_err(|error| failed("ncclGroupStart", error.0))?;
        let queued = self.queue(outbound, inbound);
        // The group is closed even if something in it failed: NCCL counts groups per thread.
        let closed = result::group_end().map_err(|error| failed("ncclGroupEnd", error.0));
        queued?;
        closed?;
        self.settle("queuing an exchange", patience)
    }

    fn queue(
        &self,
        outbound: &[(&Memory<u8>, usize)],
        inbound: &mut [(&mut Memory<u8>, usize)],
    ) -> Result<(), Error> {
        let stream = self.gpu.raw_stream() as sys::cudaStream_t;
        let (comm, byte) = (self.comm.0, sys::ncclDataType_t::ncclUint8);
        for peer in (0..self.world_size).filter(|&peer| peer != self.rank) {
            let (memory, len) = &outbound[peer];
            assert!(*len <= memory.len(), "{len} bytes of {}", memory.len());
            if *len > 0 {
                let from = memory.address() as *const _;
                // SAFETY: the memory is as long, and lives until work queued later frees it.
                let sent = unsafe { result::send(from, *len, byte, peer as c_int, comm, stream) };
                sent.map_err(|error| failed("ncclSend", error.0))?;
            }
            let (memory, len) = &mut inbound[peer];
            assert!(*len <= memory.len(), "{len} bytes of {}", memory.len());
            if *len > 0 {
                let to = memory.address() as *mut _;
                // SAFETY: as above; nothing else refers to it, since it is borrowed mutably.
                let received = unsafe { result::recv(to, *len, byte, peer as c_int, comm, stream) };
                received.map_err(|error| failed("ncclRecv", error.0))?;
            }
        }
        Ok(())
    }

    /// Waits until the exchanges queued so far, and all other work before them, are done.
    ///
    /// # Errors
    /// See [`NcclError`].
    pub fn wait(&mut self, patience: &Patience<'_>) -> Result<(), NcclError> {
        let gpu = self.gpu.clone();
        self.until("an exchange", patience, |_| gpu.is_idle())
    }

    /// Waits until NCCL has taken what it was told.
    fn settle(&mut self, doing: &'static str, patience: &Patience<'_>) -> Result<(), NcclError> {
        self.until(doing, patience, |status| Ok(status == sys::ncclResult_t::ncclSuccess))
    }

    fn until(
        &mut self,
        doing: &'static str,
        patience: &Patience<'_>,
        is_done: impl Fn(sys::ncclResult_t) -> Result<bool, Error>,
    ) -> Result<(), NcclError> {
        let waited = wait_until(doing, patience, || self.status(doing).and_then(&is_done));
        if waited.is_err() {
            self.abort();
        }
        waited
    }

    /// What NCCL says of the communicator now: success or in progress.
    fn status(&self, doing: &str) -> Result<sys::ncclResult_t, Error> {
        let mut status = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive, `status` is valid for writes.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.comm.0, &raw mut status) };
        match (asked, status) {
            (
                sys::ncclResult_t::ncclSuccess,
                sys::ncclResult_t::ncclSuccess | sys::ncclResult_t::ncclInProgress,
            ) => Ok(status),
            (sys::ncclResult_t::ncclSuccess, status) | (status, _) => Err(failed(doing, status)),
        }
    }

    /// Ends everything under way. NCCL's kernels on the device stop by themselves then.
    fn abort(&mut self) {
        if std::mem::replace(&mut self.is_dead, true) {
            return;
        }
        let (comm, (done, is_done)) = (self.comm, sync_channel(1));
        let spawned = thread::Builder::new().name("nccl-abort".to_owned()).spawn(move || {
            // The whole handle moves here, not the pointer in it.
            let Handle(comm) = { comm };
            // SAFETY: nobody uses the communicator any more: `is_dead` was set.
            let _ = unsafe { result::comm_abort(comm) };
            let _ = done.send(());
        });
        // A thread that is late is left to itself; its communicator is never used again.
        if spawned.is_ok() {
            let _ = is_done.recv_timeout(ABORT_DEADLINE);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Destroying a communicator may wait for peers; aborting it does not, and all our work is done.
        self.abort();
    }
}
