//! A GPU's way to the other ranks of its group.

use std::time::Duration;

use switchyard_kernels::cuda::Gpu;
use switchyard_moe::ids::StepId;

use super::AllToAll;
use super::nccl::{Fabric, Nccl};
use super::staged::{Staged, StagingMemory};
use crate::backend::cuda::CudaBuffer;
use crate::backend::device::{Device, Exchange};
use crate::model::Error;

/// Carries frames, and lives as long as the model: a new epoch's communicator is made when its first step comes.
#[derive(Debug)]
pub struct Link {
    gpu: Gpu,
    exchange: Exchange,
    deadline: Duration,
    fabric: Option<Fabric>,
    staging: StagingMemory,
}

// === impl Link ===

impl Link {
    /// The way that `device` asks for, with `deadline` for each exchange.
    #[must_use]
    pub fn new(device: &Device, gpu: &Gpu, deadline: Duration) -> Self {
        let exchange = match device {
            Device::Cuda { exchange, .. } => *exchange,
            Device::Cpu => Exchange::Host,
            #[cfg(feature = "cuda-emulator")]
            Device::Emulated => Exchange::Host,
        };
        Self {
            gpu: gpu.clone(),
            exchange,
            deadline,
            fabric: None,
            staging: StagingMemory::default(),
        }
    }

    /// Runs `step` with frames that go between the GPUs of the group of `host`.
    ///
    /// # Errors
    /// Those of `step`, and [`Error::Collective`] when the group's GPUs cannot be connected.
    pub fn with<R>(
        &mut self,
        host: &mut dyn AllToAll<Buffer = Vec<u8>>,
        step: StepId,
        run: impl FnOnce(&mut dyn AllToAll<Buffer = CudaBuffer>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.exchange == Exchange::Host || host.world_size() == 1 {
            return run(&mut Staged::new(host, &mut self.staging));
        }
        // A communicator that has failed, or is of another epoch, is let go first.
        let kept = self.fabric.take().filter(|fabric| fabric.epoch() == host.epoch());
        let formed = match kept {
            Some(fabric) => Ok(fabric),
            None => Fabric::form(&self.gpu, host, self.deadline),
        };
        let mut fabric = formed.map_err(|source| Error::Collective { step, source })?;
        let result = run(&mut Nccl::new(host, &mut fabric));
        if result.is_ok() {
            self.fabric = Some(fabric);
        }
        result
    }
}
