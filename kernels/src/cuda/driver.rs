//! A real GPU, through the CUDA driver.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::staging::{self, Staging};
use super::{Address, Device, Error, Launch, Variant, compile};

mod pinned;
#[cfg(test)]
#[cfg(all(feature = "gpu-tests", not(feature = "cuda-emulator")))]
mod tests;

use pinned::PinnedBuffers;

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_BYTES_DEFAULT: i32 = 48 << 10;

/// What there is to know about a GPU before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability, 9.0 for Hopper.
    pub compute_capability: (u32, u32),
    /// Its memory.
    pub total_bytes: u64,
    /// What nobody has taken yet.
    pub free_bytes: u64,
}

/// Devices that the driver shows to this process.
///
/// # Errors
/// When there is no driver.
pub fn device_count() -> Result<usize, Error> {
    require_driver()?;
    let count = CudaContext::device_count()
        .map_err(|error| driver_error("counting the machine's GPUs", error))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// Describes device `ordinal`.
///
/// # Errors
/// When there is no driver or no such device.
pub fn device_info(ordinal: usize) -> Result<DeviceInfo, Error> {
    let context = open(ordinal)?;
    let failed = |error| driver_error("describing the device", error);
    let (free, total) = context.mem_get_info().map_err(failed)?;
    Ok(DeviceInfo {
        name: context.name().map_err(failed)?,
        compute_capability: compute_capability(&context)?,
        total_bytes: total as u64,
        free_bytes: free as u64,
    })
}

/// A context, a stream, and all kernels.
pub(super) struct Driver {
    /// Made by the first big copy; `None` where the system locks no more memory.
    staging: OnceLock<Option<Mutex<Staging<PinnedBuffers>>>>,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<sys::CUmodule>,
    kernels: BTreeMap<&'static str, sys::CUfunction>,
    max_shared_bytes: i32,
}

// SAFETY: driver handles may be used from any thread; the context is bound to the thread before each use.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver locks what threads share.
unsafe impl Sync for Driver {}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("ordinal", &self.context.ordinal()).finish_non_exhaustive()
    }
}

fn driver_error(doing: &str, error: DriverError) -> Error {
    Error::Driver { doing: doing.to_owned(), detail: error.to_string() }
}

fn require_driver() -> Result<(), Error> {
    // SAFETY: loads the library, which has no constructors with preconditions.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::MissingLibrary {
        library: "the CUDA driver (libcuda.so.1)",
        advice: "install NVIDIA's driver, or run on the CPU with --device cpu",
    })
}

fn open(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    require_driver()?;
    CudaContext::new(ordinal)
        .map_err(|error| driver_error(&format!("opening GPU {ordinal}"), error))
}

/// The architecture to compile for: with all of its own instructions where a newer chip has others.
fn architecture((major, minor): (u32, u32)) -> String {
    let suffix = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

fn compute_capability(context: &CudaContext) -> Result<(u32, u32), Error> {
    let failed = |error| driver_error("asking for its architecture", error);
    let (major, minor) = context.compute_capability().map_err(failed)?;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

// === impl DeviceInfo ===

impl DeviceInfo {
    /// What [`compile::compile`] calls its architecture.
    #[must_use]
    pub fn architecture(&self) -> String {
        architecture(self.compute_capability)
    }
}

// === impl Driver ===

impl Driver {
    pub(super) fn open(
        ordinal: usize,
        variant: Variant,
        cache: &compile::Cache,
        progress: &mut dyn FnMut(compile::Progress),
    ) -> Result<Self, Error> {
        let context = open(ordinal)?;
        let failed = |doing: &'static str| move |error| driver_error(doing, error);
        let arch = architecture(compute_capability(&context)?);
        let modules = compile::compile(&arch, variant, cache, progress)?;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let most = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let max_shared_bytes =
            context.attribute(most).map_err(failed("asking for its shared memory"))?;
        let mut driver = Self {
            staging: OnceLock::new(),
            context,
            stream,
            modules: Vec::new(),
            kernels: BTreeMap::new(),
            max_shared_bytes,
        };
        for module in &modules {
            driver.load(module).map_err(failed("loading kernels"))?;
        }
        Ok(driver)
    }

    fn load(&mut self, module: &compile::Module) -> Result<(), DriverError> {
        // SAFETY: the image is a cubin, which knows its own length.
        let handle = unsafe { result::module::load_data(module.image.as_ptr().cast()) }?;
        self.modules.push(handle);
        for kernel in compile::kernels_of(module.name) {
            let name = CString::new(kernel).unwrap_or_default();
            // SAFETY: the module was just loaded and lives as long as this value.
            let function = unsafe { result::module::get_function(handle, name) }?;
            self.allow_shared_memory(function)?;
            self.kernels.insert(kernel, function);
        }
        Ok(())
    }

    /// Lets a kernel have as much dynamic shared memory as the device has beside what the kernel declares.
    fn allow_shared_memory(&self, function: sys::CUfunction) -> Result<(), DriverError> {
        let declared = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a loaded module.
        let declared = unsafe { result::function::get_function_attribute(function, declared) }?;
        let dynamic =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let left = self.max_shared_bytes - declared;
        if left > SHARED_BYTES_DEFAULT {
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(function, dynamic, left) }?;
        }
        Ok(())
    }

    /// What big copies go through.
    fn staging(&self) -> Option<&Mutex<Staging<PinnedBuffers>>> {
        let staging = self.staging.get_or_init(|| {
            PinnedBuffers::new(&self.stream).ok().map(|buffers| Mutex::new(Staging::new(buffers)))
        });
        staging.as_ref()
    }

    fn wait(&self, doing: &str) -> Result<(), Error> {
        self.stream.synchronize().map_err(|error| driver_error(doing, error))
    }
}

impl Device for Driver {
    fn allocate(&self, num_bytes: usize) -> Result<Address, Error> {
        self.bind()?;
        // SAFETY: the stream is alive.
        unsafe { result::malloc_async(self.stream.cu_stream(), num_bytes) }.map_err(|error| {
            if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                Error::OutOfMemory { num_bytes, detail: error.to_string() }
            } else {
                driver_error("allocating memory", error)
            }
        })
    }

    unsafe fn free(&self, address: Address) {
        // A context that has failed has freed everything.
        if self.bind().is_ok() {
            // SAFETY: the caller's promise; the stream orders it after all earlier work.
            let _ = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }

    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<(), Error> {
        if from.len() >= staging::BYTES_MIN
            && let Some(staging) = self.staging()
        {
            let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the caller's promise.
            return unsafe { staging.upload(from, to) };
        }
        self.bind()?;
        // SAFETY: the caller's promise. From memory that is not page-locked the driver copies before it returns.
        unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }
            .map_err(|error| driver_error("copying to the device", error))
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the caller's promise, and the wait below.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }
            .map_err(|error| driver_error("copying to the host", error))?;
        self.wait("copying to the host")
    }

    unsafe fn copy(&self, from: Address, to: Address, num_bytes: usize) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, num_bytes, self.stream.cu_stream()) }
            .map_err(|error| driver_error("copying on the device", error))
    }

    unsafe fn fill(&self, at: Address, value: u8, num_bytes: usize) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(at, value, num_bytes, self.stream.cu_stream()) }
            .map_err(|error| driver_error("filling memory", error))
    }

    unsafe fn launch(
        &self,
        launch: Launch,
        args: *const u8,
        _args_bytes: usize,
    ) -> Result<(), Error> {
        let Launch { kernel, grid: [x, y, z], block, shared_bytes } = launch;
        let Some(&function) = self.kernels.get(kernel) else {
            let detail = "no such kernel".to_owned();
            return Err(Error::Driver { doing: kernel.to_owned(), detail });
        };
        self.bind()?;
        let mut params = [args.cast_mut().cast::<c_void>()];
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's promise; the arguments are copied before this returns.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (block, 1, 1),
                shared_bytes,
                stream,
                &mut params,
            )
        }
        .map_err(|error| driver_error(kernel, error))
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.bind()?;
        self.wait("waiting for the device")
    }

    fn is_idle(&self) -> Result<bool, Error> {
        self.bind()?;
        // SAFETY: the stream is alive.
        let status = unsafe { sys::cuStreamQuery(self.stream.cu_stream()) };
        if status == CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        let failed = |error| driver_error("asking whether work is done", error);
        status.result().map(|()| true).map_err(failed)
    }

    fn max_shared_bytes(&self) -> usize {
        self.max_shared_bytes.unsigned_abs() as usize
    }

    fn bind(&self) -> Result<(), Error> {
        self.context.bind_to_thread().map_err(|error| driver_error("binding the context", error))
    }

    fn raw_stream(&self) -> usize {
        self.stream.cu_stream() as usize
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.bind().is_ok() && self.stream.synchronize().is_ok() {
            for &module in &self.modules {
                // SAFETY: loaded once, and no work is left that runs its kernels.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}
