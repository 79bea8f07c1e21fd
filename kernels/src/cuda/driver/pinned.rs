//! Page-locked memory.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use super::super::staging::Buffers;
use super::{Address, Error, driver_error};

/// Buffers that big copies to the device go through. With this many, one is filled while others are queued, so that
/// the bus has its next copy when it ends one.
const NUM_BUFFERS: usize = 4;
/// Size of each: far more than a copy's fixed costs, and of all together little memory.
const BUFFER_BYTES: usize = 32 << 20;

/// Page-locked buffers whose copies go to one stream.
pub(super) struct PinnedBuffers {
    buffers: Vec<Pinned>,
    stream: Arc<CudaStream>,
}

/// [`BUFFER_BYTES`] of page-locked memory.
struct Pinned {
    memory: *mut u8,
    /// Recorded after the last copy out of it.
    copied: CudaEvent,
}

// SAFETY: to the host, page-locked memory is as any other, and only this value uses it.
unsafe impl Send for Pinned {}

impl fmt::Debug for PinnedBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffers").field("num_buffers", &self.buffers.len()).finish()
    }
}

// === impl PinnedBuffers ===

impl PinnedBuffers {
    /// Locks the memory.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, DriverError> {
        let pinned = |_| Pinned::new(stream.context());
        let buffers = (0..NUM_BUFFERS).map(pinned).collect::<Result<_, _>>()?;
        Ok(Self { buffers, stream: Arc::clone(stream) })
    }
}

impl Buffers for PinnedBuffers {
    fn num_buffers(&self) -> usize {
        NUM_BUFFERS
    }

    fn buffer_bytes(&self) -> usize {
        BUFFER_BYTES
    }

    fn lend(&mut self, index: usize) -> Result<&mut [u8], Error> {
        let buffer = &mut self.buffers[index];
        let failed = |error| driver_error("waiting for a copy to the device", error);
        buffer.copied.synchronize().map_err(failed)?;
        // SAFETY: it is this long, was written with zeros when it was made, and no copy reads it any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.memory, BUFFER_BYTES) })
    }

    unsafe fn send(&mut self, index: usize, num_bytes: usize, to: Address) -> Result<(), Error> {
        let failed = |error| driver_error("copying to the device", error);
        let buffer = &self.buffers[index];
        self.stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: it is initialised and at least this long; it is lent again only when the event below is over.
        let from = unsafe { std::slice::from_raw_parts(buffer.memory.cast_const(), num_bytes) };
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(failed)?;
        buffer.copied.record(&self.stream).map_err(failed)
    }
}

// === impl Pinned ===

impl Pinned {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        // Binds the context, which the allocation needs.
        let copied = context.new_event(None)?;
        // SAFETY: a context is bound.
        let memory = unsafe { result::malloc_host(BUFFER_BYTES, 0) }?.cast::<u8>();
        // SAFETY: just allocated, this long.
        unsafe { memory.write_bytes(0, BUFFER_BYTES) };
        Ok(Self { memory, copied })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy may be under way. If the device has failed, none is.
        let _ = self.copied.synchronize();
        // SAFETY: it was allocated by this call's twin, and nothing reads it any more.
        let _ = unsafe { result::free_host(self.memory.cast::<c_void>()) };
    }
}
