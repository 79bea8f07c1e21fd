//! The kernels on this CPU: the same sources, compiled by the C++ compiler. See `cuda/emulator/emulator.h`.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Address, Device, Error, Launch, Variant};

/// As a GPU's allocations.
const ALIGNMENT: usize = 256;
/// Written around every allocation, to find kernels that write where they must not.
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;
/// Dynamic shared memory of a block on compute capability 9.0.
const HOPPER_SHARED_BYTES: usize = 227 << 10;

/// Signature of the emulator's entry.
type Emulate = unsafe extern "C" fn(
    name: *const c_char,
    grid: *const u32,
    block: *const u32,
    shared_bytes: u32,
    args: *const u8,
    args_bytes: usize,
) -> c_int;

unsafe extern "C" {
    fn switchyard_emulate_exact(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        args: *const u8,
        args_bytes: usize,
    ) -> c_int;
    fn switchyard_emulate_official(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        args: *const u8,
        args_bytes: usize,
    ) -> c_int;
}

/// This CPU as a device that finishes every piece of work before the next is queued.
#[derive(Debug)]
pub(super) struct Emulator {
    variant: Variant,
    /// Bytes asked for at each address.
    allocations: Mutex<BTreeMap<Address, usize>>,
}

// === impl Emulator ===

impl Emulator {
    pub(super) fn new(variant: Variant) -> Self {
        Self { variant, allocations: Mutex::new(BTreeMap::new()) }
    }

    fn allocations(&self) -> MutexGuard<'_, BTreeMap<Address, usize>> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(num_bytes: usize) -> Layout {
        Layout::from_size_align(num_bytes + 2 * GUARD_BYTES, ALIGNMENT)
            .unwrap_or(Layout::new::<u8>())
    }

    /// Whether the guards around an allocation are whole.
    fn is_intact(address: Address, num_bytes: usize) -> bool {
        let start = address as usize - GUARD_BYTES;
        [start, address as usize + num_bytes].iter().all(|&guard| {
            // SAFETY: guards were allocated on both sides.
            let bytes = unsafe { std::slice::from_raw_parts(guard as *const u8, GUARD_BYTES) };
            bytes.iter().all(|&byte| byte == GUARD)
        })
    }
}

impl Device for Emulator {
    fn allocate(&self, num_bytes: usize) -> Result<Address, Error> {
        let layout = Self::layout(num_bytes);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(Error::OutOfMemory { num_bytes, detail: "of the host".to_owned() });
        }
        // SAFETY: all of it was allocated.
        unsafe { start.write_bytes(GUARD, layout.size()) };
        let address = (start as usize + GUARD_BYTES) as Address;
        self.allocations().insert(address, num_bytes);
        Ok(address)
    }

    unsafe fn free(&self, address: Address) {
        let Some(num_bytes) = self.allocations().remove(&address) else { return };
        let start = (address as usize - GUARD_BYTES) as *mut u8;
        // SAFETY: the layout that it was allocated with.
        unsafe { dealloc(start, Self::layout(num_bytes)) };
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, num_bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, num_bytes) };
        Ok(())
    }

    unsafe fn fill(&self, at: Address, value: u8, num_bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { (at as *mut u8).write_bytes(value, num_bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        launch: Launch,
        args: *const u8,
        args_bytes: usize,
    ) -> Result<(), Error> {
        let failed = |detail: String| Error::Driver { doing: launch.kernel.to_owned(), detail };
        let emulate: Emulate = match self.variant {
            Variant::Exact => switchyard_emulate_exact,
            Variant::Official => switchyard_emulate_official,
        };
        let name = CString::new(launch.kernel).map_err(|error| failed(error.to_string()))?;
        let block = [launch.block, 1, 1];
        let (grid, block) = (launch.grid.as_ptr(), block.as_ptr());
        // SAFETY: the caller's promise; the emulator compares the arguments' size.
        match unsafe { emulate(name.as_ptr(), grid, block, launch.shared_bytes, args, args_bytes) }
        {
            0 => {}
            1 => return Err(failed("no such kernel".to_owned())),
            _ => return Err(failed(format!("its arguments are not {args_bytes} bytes"))),
        }
        let broken = |&(&address, &bytes): &(&Address, &usize)| !Self::is_intact(address, bytes);
        match self.allocations().iter().find(broken) {
            Some((_, bytes)) => Err(failed(format!("wrote beyond an allocation of {bytes} bytes"))),
            None => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }

    fn is_idle(&self) -> Result<bool, Error> {
        Ok(true)
    }

    fn max_shared_bytes(&self) -> usize {
        HOPPER_SHARED_BYTES
    }

    fn bind(&self) -> Result<(), Error> {
        Ok(())
    }

    fn raw_stream(&self) -> usize {
        0
    }
}
