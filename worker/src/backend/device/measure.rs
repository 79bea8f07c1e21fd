//! What measurements need of a device.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use switchyard_moe::config::ModelConfig;
use switchyard_moe::ids::{BlockId, SequenceId, StepId};
use tokio::time::Instant;

#[cfg(not(feature = "cuda"))]
use super::NotBuilt;
#[cfg(feature = "cuda")]
use super::open;
use super::{Device, DeviceModel};
use crate::backend::Numerics;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{CudaBackend, CudaBuffer, measure};
use crate::bench::kernels::{Event, Options, Report};
use crate::collective::loopback::{Census, Loopback};
use crate::kv_cache;
use crate::model::{Error, LoadOptions, Progress, RankModel};
use crate::step::{StepBatch, StepResult};
use crate::weights::Source;

#[cfg(feature = "cuda")]
use switchyard_kernels::cuda::{Gpu, device_info};

/// Copies that are timed together.
const NUM_COPIES: usize = 10;

/// Bytes of the rows of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowBytes {
    /// A window row or compressed entry.
    pub entry: usize,
    /// An indexer key.
    pub index_key: usize,
}

/// The model of a rank that is alone; see [`Loopback`].
#[derive(Debug)]
pub enum LoneModel {
    /// On the processor.
    Cpu(Box<RankModel>, Loopback<Vec<u8>>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<RankModel<CudaBackend>>, Loopback<CudaBuffer>),
}

// === impl RowBytes ===

impl RowBytes {
    /// Of a cache on `device`.
    #[must_use]
    pub fn of(device: &Device, numerics: Numerics, config: &ModelConfig) -> Self {
        let format = device.cache_format(numerics);
        Self {
            entry: format.row_bytes(config.head_dim, config.qk_rope_head_dim),
            index_key: format.key_bytes(config.index_head_dim),
        }
    }
}

/// Memory of `device` that nobody has taken, if that is to be known.
///
/// # Errors
/// When there is no such device.
pub fn free_bytes(device: &Device) -> Result<Option<u64>, Error> {
    match device {
        Device::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda { ordinal, .. } => device_info(*ordinal)
            .map(|info| Some(info.free_bytes))
            .map_err(|error| Error::Device(Arc::new(error))),
        #[cfg(feature = "cuda-emulator")]
        Device::Emulated => Ok(None),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => Err(Error::Device(Arc::new(NotBuilt))),
    }
}

/// Times every kernel; see [`crate::bench::kernels`].
///
/// # Errors
/// When there is no such GPU, or it fails.
pub fn kernels(options: &Options, observe: &mut dyn FnMut(Event<'_>)) -> Result<Report, Error> {
    match &options.device {
        Device::Cpu => Err(Error::Device(Arc::new(NoGpu))),
        #[cfg(feature = "cuda")]
        device => {
            let gpu = open(device, Numerics::Official)?;
            let name = name_of(device).map_err(|error| Error::Device(Arc::new(error)))?;
            measure::run(&gpu, &name, options, observe)
                .map_err(|error| Error::Device(Arc::new(error)))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => {
            let _ = observe;
            Err(Error::Device(Arc::new(NotBuilt)))
        }
    }
}

#[cfg(feature = "cuda")]
fn name_of(device: &Device) -> Result<String, switchyard_kernels::cuda::Error> {
    if let Device::Cuda { ordinal, .. } = device {
        return Ok(device_info(*ordinal)?.name);
    }
    Ok(device.to_string())
}

/// Only GPUs have kernels to measure.
#[derive(Debug, thiserror::Error)]
#[error("kernels are measured on a GPU; use --device cuda")]
struct NoGpu;

/// Bytes per second, read and written ones together, at which this machine's memory is copied by `num_threads`.
fn copy_host(num_bytes: usize, num_threads: NonZeroUsize) -> f64 {
    let share = num_bytes.div_ceil(num_threads.get()).max(1);
    let from = vec![1_u8; num_bytes];
    let mut to = vec![2_u8; num_bytes];
    let mut copy = || {
        thread::scope(|scope| {
            for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
    };
    copy();
    let start = Instant::now();
    (0..NUM_COPIES).for_each(|_| copy());
    (2 * NUM_COPIES * num_bytes) as f64 / start.elapsed().as_secs_f64()
}

/// The same of a GPU's memory.
#[cfg(feature = "cuda")]
pub(crate) fn copy_device(gpu: &Gpu, num_bytes: usize) -> f64 {
    let from = gpu.zeros::<u8>(num_bytes);
    let mut to = gpu.zeros::<u8>(num_bytes);
    to.copy_from(0, &from, 0, num_bytes);
    gpu.synchronize();
    let start = Instant::now();
    (0..NUM_COPIES).for_each(|_| to.copy_from(0, &from, 0, num_bytes));
    gpu.synchronize();
    (2 * NUM_COPIES * num_bytes) as f64 / start.elapsed().as_secs_f64()
}

// === impl LoneModel ===

impl LoneModel {
    /// Loads rank 0 of the group of `options`; see [`RankModel::load`].
    ///
    /// # Errors
    /// As [`RankModel::load`].
    pub fn load(
        device: &Device,
        source: &dyn Source,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let num_ranks = options.placement.world_size();
        Ok(match DeviceModel::load(device, source, options, progress)? {
            DeviceModel::Cpu(model) => Self::Cpu(model, Loopback::new(num_ranks)),
            #[cfg(feature = "cuda")]
            DeviceModel::Cuda(mut model, ..) => {
                model.fill_with_noise();
                Self::Cuda(model, Loopback::new(num_ranks))
            }
        })
    }

    /// Bytes per second, read and written ones together, of copies of `num_bytes` in the device's memory.
    #[must_use]
    pub fn copy_bandwidth(&self, num_bytes: usize, num_threads: NonZeroUsize) -> f64 {
        match self {
            Self::Cpu(..) => copy_host(num_bytes, num_threads),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => copy_device(model.backend().gpu(), num_bytes),
        }
    }

    /// See [`RankModel::clear`].
    pub fn clear(&mut self) {
        match self {
            Self::Cpu(model, _) => model.clear(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.clear(),
        }
    }

    /// See [`RankModel::pretend`].
    ///
    /// # Errors
    /// As [`RankModel::pretend`].
    pub fn pretend(
        &mut self,
        id: SequenceId,
        num_tokens: usize,
        blocks: Vec<BlockId>,
    ) -> Result<(), kv_cache::Error> {
        match self {
            Self::Cpu(model, _) => model.pretend(id, num_tokens, blocks),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.pretend(id, num_tokens, blocks),
        }
    }

    /// See [`RankModel::time_phases`].
    pub fn time_phases(&mut self, waits: bool) {
        match self {
            Self::Cpu(model, _) => model.time_phases(waits),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, _) => model.time_phases(waits),
        }
    }

    /// See [`RankModel::step`].
    ///
    /// # Errors
    /// As [`RankModel::step`].
    pub fn step(&mut self, step: StepId, batch: &StepBatch) -> Result<StepResult, Error> {
        match self {
            Self::Cpu(model, loopback) => model.step(step, batch, loopback),
            #[cfg(feature = "cuda")]
            Self::Cuda(model, loopback) => model.step(step, batch, loopback),
        }
    }

    /// [`step`](Self::step) that also counts which experts here had rows.
    ///
    /// # Errors
    /// As [`RankModel::step`].
    pub fn counted_step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
    ) -> Result<(StepResult, Census), Error> {
        match self {
            Self::Cpu(model, loopback) => {
                loopback.begin_census(model.config().num_experts_per_tok);
                let result = model.step(step, batch, loopback)?;
                Ok((result, loopback.end_census()))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(model, loopback) => {
                loopback.begin_census(model.config().num_experts_per_tok);
                let result = model.step(step, batch, loopback)?;
                Ok((result, loopback.end_census()))
            }
        }
    }
}
