//! The ops on NVIDIA GPUs.
//!
//! [`Gpu`] is a device with all kernels in one [`Variant`]; what it computes on are [`Memory`] and [`Tensor`]. Every op
//! is a function of the module of its name. All work goes to one stream, in order; nothing waits for the device but
//! what brings data back.
//!
//! The kernels' sources are in the folder `cuda/`, one file per op. [`compile`] makes them machine code through NVRTC
//! once per device and version; `driver` runs that; with the feature `cuda-emulator`, `emulator` runs the same sources
//! compiled for the CPU, a block's threads as fibers.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;

pub mod compile;
pub mod nccl;
pub mod matmul;
pub mod experts;
pub mod embed;
pub mod quant;
pub mod norm;
pub mod rope;
pub mod hyper;
pub mod kv_cache;
pub mod compressor;
pub mod indexer;
pub mod attention;
pub mod gate;
pub mod exchange;
pub mod swiglu;
pub mod sampling;
mod driver;
#[cfg(feature = "cuda-emulator")]
mod emulator;
mod staging;
mod step;
mod tensor;
mod weights;
#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod testing;

pub use driver::{DeviceInfo, device_count, device_info};
pub use step::{Row, Step};
pub use tensor::{Elem, Tensor};
pub use weights::{Format, Weights};

/// What the kernels are compiled for: the type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `f32` activations.
    Exact,
    /// bf16 activations.
    Official,
}

/// Why the device cannot be used, or what it reported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A library is missing.
    #[error("{library} was not found; {advice}")]
    MissingLibrary {
        /// Its name.
        library: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The driver reported an error.
    #[error("the GPU failed at {doing}: {detail}")]
    Driver {
        /// What was asked of it.
        doing: String,
        /// What it said.
        detail: String,
    },
    /// A kernel's source was refused.
    #[error("cannot compile kernels/cuda/{name}.cu for {arch}: {log}")]
    Compile {
        /// File name without extension.
        name: &'static str,
        /// `sm_90a`, say.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// There is not enough memory.
    #[error("the GPU has no {num_bytes} bytes left: {detail}")]
    OutOfMemory {
        /// Bytes asked for.
        num_bytes: usize,
        /// What the driver said.
        detail: String,
    },
}

/// A number that kernels read and write.
///
/// # Safety
///
/// Implemented by types without padding for which every bit pattern is a value, of the same layout on both sides.
pub unsafe trait Pod: Copy + Send + Sync + 'static {}

macro_rules! pod {
    ($($type:ty),*) => {$(
        // SAFETY: a plain number.
        unsafe impl Pod for $type {}
    )*};
}
pod!(u8, u16, u32, u64, i32, f32, bf16);

/// An address on the device.
pub type Address = u64;

/// How a kernel is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Its name.
    pub(crate) kernel: &'static str,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared_bytes: u32,
}

/// The few things that a device can do.
pub(crate) trait Device: Send + Sync + fmt::Debug {
    fn allocate(&self, num_bytes: usize) -> Result<Address, Error>;

    /// Frees an allocation when all work queued before is done.
    ///
    /// # Safety
    ///
    /// `address` comes from [`allocate`](Self::allocate) and is used by nothing queued later.
    unsafe fn free(&self, address: Address);

    /// Copies to the device; `from` is free again when this returns.
    ///
    /// # Safety
    ///
    /// `to` is the start of as many bytes on the device.
    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), Error>;

    /// Waits for all work queued before and copies to the host.
    ///
    /// # Safety
    ///
    /// `from` is the start of as many bytes on the device.
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Error>;

    /// Copies on the device.
    ///
    /// # Safety
    ///
    /// Both are the start of `num_bytes` bytes on the device that do not overlap.
    unsafe fn copy(&self, from: Address, to: Address, num_bytes: usize) -> Result<(), Error>;

    /// Fills with a byte.
    ///
    /// # Safety
    ///
    /// `at` is the start of `num_bytes` bytes on the device.
    unsafe fn fill(&self, at: Address, value: u8, num_bytes: usize) -> Result<(), Error>;

    /// Queues a kernel.
    ///
    /// # Safety
    ///
    /// `args` is the address of what the kernel takes, `args_bytes` long, and names memory as the kernel uses it.
    unsafe fn launch(
        &self,
        launch: Launch,
        args: *const u8,
        args_bytes: usize,
    ) -> Result<(), Error>;

    /// Waits until all work is done.
    fn synchronize(&self) -> Result<(), Error>;

    /// Whether all work is done.
    fn is_idle(&self) -> Result<bool, Error>;

    /// Dynamic shared memory that a block may have.
    fn max_shared_bytes(&self) -> usize;

    /// Makes the device the calling thread's, for libraries that ask which one that is.
    fn bind(&self) -> Result<(), Error>;

    /// The stream, as the driver knows it; 0 on the emulator.
    fn raw_stream(&self) -> usize;
}

/// A device with all kernels in one variant. Cheap to clone.
///
/// A device that fails goes on failing, so ops return nothing: the first fault is kept, later work is skipped, and
/// [`fault`](Self::fault) tells. Results read in between are zeros.
#[derive(Clone, Debug)]
pub struct Gpu {
    device: Arc<dyn Device>,
    variant: Variant,
    fault: Arc<Mutex<Option<Error>>>,
}

/// `len` numbers on the device.
#[derive(Debug)]
pub struct Memory<T> {
    gpu: Gpu,
    address: Address,
    len: usize,
    _numbers: PhantomData<T>,
}

// === impl Gpu ===

impl Gpu {
    /// Opens device `ordinal`, compiling kernels that `cache` does not hold yet; `progress` hears of each.
    ///
    /// # Errors
    /// When there is no such device, or no driver or compiler.
    pub fn open(
        ordinal: usize,
        variant: Variant,
        cache: &compile::Cache,
        progress: &mut dyn FnMut(compile::Progress),
    ) -> Result<Self, Error> {
        let device = driver::Driver::open(ordinal, variant, cache, progress)?;
        Ok(Self::new(Arc::new(device), variant))
    }

    /// A device that is this CPU: for tests, slow.
    #[cfg(feature = "cuda-emulator")]
    #[must_use]
    pub fn emulated(variant: Variant) -> Self {
        Self::new(Arc::new(emulator::Emulator::new(variant)), variant)
    }

    fn new(device: Arc<dyn Device>, variant: Variant) -> Self {
        Self { device, variant, fault: Arc::new(Mutex::new(None)) }
    }

    /// What the kernels are compiled for.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Type of activations.
    #[must_use]
    pub fn act(&self) -> Elem {
        match self.variant {
            Variant::Exact => Elem::F32,
            Variant::Official => Elem::Bf16,
        }
    }

    /// The first thing that went wrong.
    #[must_use]
    pub fn fault(&self) -> Option<Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The stream that all work goes to, as the driver knows it.
    #[must_use]
    pub fn raw_stream(&self) -> usize {
        self.device.raw_stream()
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) {
        self.record(self.device.synchronize());
    }

    /// Whether all work is done.
    ///
    /// # Errors
    /// When the device failed.
    pub(crate) fn is_idle(&self) -> Result<bool, Error> {
        self.device.is_idle()
    }

    /// Dynamic shared memory that a block may have.
    pub(crate) fn max_shared_bytes(&self) -> usize {
        self.device.max_shared_bytes()
    }

    /// Makes the device the calling thread's.
    pub(crate) fn bind(&self) -> Result<(), Error> {
        self.device.bind()
    }

    /// `len` numbers, all bits zero.
    #[must_use]
    pub fn zeros<T: Pod>(&self, len: usize) -> Memory<T> {
        let memory = self.allocate(len);
        if self.fault().is_none() {
            // SAFETY: the allocation is this long.
            self.record(unsafe { self.device.fill(memory.address, 0, memory.num_bytes()) });
        }
        memory
    }

    /// Copies numbers to the device.
    #[must_use]
    pub fn upload<T: Pod>(&self, data: &[T]) -> Memory<T> {
        let mut memory = self.allocate(data.len());
        memory.write(0, data);
        memory
    }

    /// `len` numbers of any value.
    fn allocate<T: Pod>(&self, len: usize) -> Memory<T> {
        let num_bytes = (len * size_of::<T>()).max(1);
        let address = match self.fault() {
            None => self.device.allocate(num_bytes),
            Some(fault) => Err(fault),
        };
        let address = self.record(address).unwrap_or_default();
        Memory { gpu: self.clone(), address, len, _numbers: PhantomData }
    }

    /// Queues a kernel, unless the device has failed before or there is nothing to do.
    ///
    /// # Safety
    ///
    /// `A` is the twin of the struct that the kernel takes, and `args` names memory as the kernel uses it.
    pub(crate) unsafe fn launch<A: Copy>(&self, launch: Launch, args: &A) {
        if launch.grid.contains(&0) || self.fault().is_some() {
            return;
        }
        // SAFETY: the caller's promise; a reference is a valid address.
        let launched =
            unsafe { self.device.launch(launch, std::ptr::from_ref(args).cast(), size_of::<A>()) };
        self.record(launched);
    }

    fn record<R>(&self, result: Result<R, Error>) -> Option<R> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }
}

// === impl Memory ===

impl<T: Pod> Memory<T> {
    /// Numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn num_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Where number `index` is.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(crate) fn address_of(&self, index: usize) -> Address {
        assert!(index <= self.len, "number {index} of {}", self.len);
        self.address + (index * size_of::<T>()) as u64
    }

    /// Copies numbers to the device, from number `first` on.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    pub fn write(&mut self, first: usize, data: &[T]) {
        assert!(first + data.len() <= self.len, "{} from {first} of {}", data.len(), self.len);
        if data.is_empty() || self.gpu.fault().is_some() {
            return;
        }
        // SAFETY: plain numbers, which are all initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        // SAFETY: the range was checked.
        let copied = unsafe { self.gpu.device.upload(bytes, self.address_of(first)) };
        self.gpu.record(copied);
    }

    /// Waits for the work queued so far and copies `len` numbers to the host, from number `first` on.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[must_use]
    pub fn read(&self, first: usize, len: usize) -> Vec<T> {
        assert!(first + len <= self.len, "{len} from {first} of {}", self.len);
        let mut bytes = vec![0_u64; (len * size_of::<T>()).div_ceil(8)];
        if len > 0 && self.gpu.fault().is_none() {
            // SAFETY: the vector is at least this long.
            let to = unsafe {
                std::slice::from_raw_parts_mut(
                    bytes.as_mut_ptr().cast::<u8>(),
                    len * size_of::<T>(),
                )
            };
            // SAFETY: the range was checked.
            let copied = unsafe { self.gpu.device.download(self.address_of(first), to) };
            self.gpu.record(copied);
        }
        // SAFETY: every bit pattern is a number, and eight bytes are aligned for all of them.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<T>(), len) }.to_vec()
    }

    /// Copies `len` numbers from other memory of the same device.
    ///
    /// # Panics
    ///
    /// If there are fewer on either side.
    pub fn copy_from(&mut self, first: usize, from: &Self, from_first: usize, len: usize) {
        assert!(first + len <= self.len, "{len} from {first} of {}", self.len);
        assert!(from_first + len <= from.len, "{len} from {from_first} of {}", from.len);
        if len == 0 || self.gpu.fault().is_some() {
            return;
        }
        let (to, from) = (self.address_of(first), from.address_of(from_first));
        // SAFETY: both ranges were checked, and belong to two allocations.
        let copied = unsafe { self.gpu.device.copy(from, to, len * size_of::<T>()) };
        self.gpu.record(copied);
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: it was allocated for this value, whose address nothing else keeps.
            unsafe { self.gpu.device.free(self.address) };
        }
    }
}
