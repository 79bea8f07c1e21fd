//! Which device a rank computes on, and a model on any of them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use switchyard_moe::capacity::CacheFormat;
use switchyard_moe::ids::{EpRank, StepId};
use switchyard_moe::placement::Placement;

use crate::collective::AllToAll;
#[cfg(feature = "cuda")]
use crate::collective::link::Link;
use crate::model::{Error, LoadOptions, Progress, RankModel};
use crate::step::{StepBatch, StepResult};
use crate::weights::Source;

use super::Numerics;
#[cfg(feature = "cuda")]
use super::cuda::CudaBackend;
#[cfg(feature = "cuda")]
use switchyard_kernels::cuda::{self, Gpu, Variant, compile, device_count, device_info};

pub mod measure;

/// Where a rank computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number on this machine.
        ordinal: usize,
        /// Where compiled kernels are kept; `None` compiles at every start.
        kernel_cache: Option<PathBuf>,
        /// How frames reach other ranks.
        exchange: Exchange,
    },
    /// A GPU that is this processor.
    #[cfg(feature = "cuda-emulator")]
    Emulated,
}

/// How the frames of a GPU reach other ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exchange {
    /// From device to device, by NCCL.
    #[default]
    Nccl,
    /// Through the hosts' memory and their mesh: slower, but needs nothing.
    Host,
}

/// A text that names no way of exchange.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no way of exchange; use \"nccl\" or \"host\"")]
pub struct UnknownExchange(String);

/// What there is to know of a device before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuDescription {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory_bytes: u64,
}

/// A kernel that was just compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Its name.
    pub name: &'static str,
    /// Kernels that are ready.
    pub num_done: usize,
    /// All kernels.
    pub num_kernels: usize,
}

/// A text that names no device.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no device; use \"cpu\", \"cuda\" or \"cuda:N\"")]
pub struct UnknownDevice(String);

/// GPUs of this machine.
///
/// # Errors
/// When there is no driver.
pub fn num_gpus() -> Result<usize, Error> {
    #[cfg(feature = "cuda")]
    return device_count().map_err(refused);
    #[cfg(not(feature = "cuda"))]
    Err(Error::Device(Arc::new(NotBuilt)))
}

/// This program was built without support for a device.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, thiserror::Error)]
#[error("this program was built without CUDA; build it with --features cuda, or use --device cpu")]
struct NotBuilt;

/// A rank's model on its device.
#[derive(Debug)]
pub enum DeviceModel {
    /// On the processor.
    Cpu(Box<RankModel>),
    /// On a GPU, with its way to other ranks.
    #[cfg(feature = "cuda")]
    Cuda(Box<RankModel<CudaBackend>>, Box<Link>),
}

// === impl Device ===

impl Device {
    /// GPU `ordinal` of this machine, with NCCL and without a kernel cache.
    #[must_use]
    pub fn cuda(ordinal: usize) -> Self {
        Self::Cuda { ordinal, kernel_cache: None, exchange: Exchange::default() }
    }

    /// Describes the GPU; `None` for the processor.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn gpu(&self) -> Result<Option<GpuDescription>, Error> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda { ordinal, .. } => {
                let info = device_info(*ordinal).map_err(refused)?;
                Ok(Some(GpuDescription { name: info.name, memory_bytes: info.total_bytes }))
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda { .. } => Err(Error::Device(Arc::new(NotBuilt))),
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => {
                Ok(Some(GpuDescription { name: "this processor".to_owned(), memory_bytes: 0 }))
            }
        }
    }

    /// Fills the kernel cache, so that loading need not compile; `progress` hears of each kernel that is new. Without a
    /// cache there is nothing to prepare.
    ///
    /// # Errors
    /// When the device cannot be opened, or there is no compiler.
    pub fn prepare(
        &self,
        numerics: Numerics,
        progress: &mut dyn FnMut(Compiled),
    ) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Self::Cuda { ordinal, kernel_cache: Some(dir), .. } = self {
            let arch = device_info(*ordinal).map_err(refused)?.architecture();
            let cache = compile::Cache::new(dir.clone());
            let mut progress = new_only(progress);
            compile::compile(&arch, variant(numerics), &cache, &mut progress).map_err(refused)?;
        }
        #[cfg(not(feature = "cuda"))]
        let _ = (numerics, progress);
        Ok(())
    }

    /// How rows of the KV cache are kept on it.
    #[must_use]
    pub fn cache_format(&self, numerics: Numerics) -> CacheFormat {
        match (numerics, self) {
            (Numerics::Exact, _) => CacheFormat::F32,
            (Numerics::Official, Self::Cpu) => CacheFormat::Bf16,
            (Numerics::Official, _) => CacheFormat::Fp8,
        }
    }

    /// The same device with kernels kept in `dir`.
    #[must_use]
    pub fn with_kernel_cache(mut self, dir: PathBuf) -> Self {
        if let Self::Cuda { kernel_cache, .. } = &mut self {
            *kernel_cache = Some(dir);
        }
        self
    }

    /// The same device with frames that travel by `way`.
    #[must_use]
    pub fn with_exchange(mut self, way: Exchange) -> Self {
        if let Self::Cuda { exchange, .. } = &mut self {
            *exchange = way;
        }
        self
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal, .. } => write!(f, "cuda:{ordinal}"),
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => f.write_str("emulated"),
        }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(name.to_owned());
        let ordinal = match name.split_once(':') {
            None if name == "cpu" => return Ok(Self::Cpu),
            None if name == "cuda" => 0,
            Some(("cuda", ordinal)) => ordinal.parse().map_err(|_| unknown())?,
            None | Some(_) => return Err(unknown()),
        };
        Ok(Self::cuda(ordinal))
    }
}

// === impl Exchange ===

impl FromStr for Exchange {
    type Err = UnknownExchange;

    fn from_str(name: &str) -> Result<Self, UnknownExchange> {
        match name {
            "nccl" => Ok(Self::Nccl),
            "host" => Ok(Self::Host),
            _ => Err(UnknownExchange(name.to_owned())),
        }
    }
}

// === impl Compiled ===

impl Compiled {
    /// Tells the log.
    pub fn log(self) {
        tracing::info!("{self}");
    }
}

impl fmt::Display for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, num_done, num_kernels } = self;
        write!(f, "compiled kernels {num_done} of {num_kernels}: {name}")
    }
}

// === impl DeviceModel ===

impl DeviceModel {
    /// Loads what rank `options.rank` needs of `checkpoint` onto `device`; see [`RankModel::load`].
    ///
    /// # Errors
    /// As [`RankModel::load`].
    pub fn load(
        device: &Device,
        checkpoint: &dyn Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        match device {
            Device::Cpu => Ok(Self::Cpu(Box::new(RankModel::load(checkpoint, options, progress)?))),
            #[cfg(feature = "cuda")]
            _ => {
                let gpu = open(device, options.numerics)?;
                let quantized = checkpoint.has_quantized_experts();
                let backend = CudaBackend::new(&gpu, checkpoint.config(), quantized);
                let model = RankModel::load_on(backend, checkpoint, options, progress)?;
                let link = Link::new(device, &gpu, options.exchange_deadline);
                Ok(Self::Cuda(Box::new(model), Box::new(link)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { .. } => Err(Error::Device(Arc::new(NotBuilt))),
        }
    }

    /// See [`RankModel::place`].
    ///
    /// # Errors
    /// As [`RankModel::place`].
    pub fn place(
        &mut self,
        checkpoint: &dyn Source,
        rank: EpRank,
        placement: &Placement,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        match self {
            Self::Cpu(model) => model.place(checkpoint, rank, placement, progress),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.place(checkpoint, rank, placement, progress),
        }
    }

    /// See [`RankModel::clear`].
    pub fn clear(&mut self) {
        match self {
            Self::Cpu(model) => model.clear(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.clear(),
        }
    }

    /// See [`RankModel::num_sequences`].
    #[must_use]
    pub fn num_sequences(&self) -> usize {
        match self {
            Self::Cpu(model) => model.num_sequences(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.num_sequences(),
        }
    }

    /// See [`RankModel::step`].
    ///
    /// # Errors
    /// As [`RankModel::step`].
    pub fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        host: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<StepResult, Error> {
        match self {
            Self::Cpu(model) => model.step(step, batch, host),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, link) => {
                link.with(host, step, |frames| model.step(step, batch, frames))
            }
        }
    }

    /// See [`RankModel::step_with_logits`].
    ///
    /// # Errors
    /// As [`RankModel::step_with_logits`].
    pub fn step_with_logits(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        host: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<(StepResult, Vec<f32>), Error> {
        match self {
            Self::Cpu(model) => model.step_with_logits(step, batch, host),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, link) => {
                link.with(host, step, |frames| model.step_with_logits(step, batch, frames))
            }
        }
    }
}

/// The GPU that `device` is.
#[cfg(feature = "cuda")]
fn open(device: &Device, numerics: Numerics) -> Result<Gpu, Error> {
    let variant = variant(numerics);
    let (ordinal, cache) = match device {
        Device::Cuda { ordinal, kernel_cache, .. } => (*ordinal, kernel_cache.clone()),
        #[cfg(feature = "cuda-emulator")]
        Device::Emulated => return Ok(Gpu::emulated(variant)),
        Device::Cpu => (0, None),
    };
    let cache = cache.map_or_else(compile::Cache::none, compile::Cache::new);
    let mut progress = Compiled::log;
    Gpu::open(ordinal, variant, &cache, &mut new_only(&mut progress)).map_err(refused)
}

#[cfg(feature = "cuda")]
fn variant(numerics: Numerics) -> Variant {
    match numerics {
        Numerics::Exact => Variant::Exact,
        Numerics::Official => Variant::Official,
    }
}

#[cfg(feature = "cuda")]
fn refused(error: cuda::Error) -> Error {
    Error::Device(Arc::new(error))
}

/// Leaves out the kernels that were in the cache.
#[cfg(feature = "cuda")]
fn new_only(progress: &mut dyn FnMut(Compiled)) -> impl FnMut(compile::Progress) {
    |done| {
        let compile::Progress { name, num_done, num_sources, is_new } = done;
        if is_new {
            progress(Compiled { name, num_done, num_kernels: num_sources });
        }
    }
}
