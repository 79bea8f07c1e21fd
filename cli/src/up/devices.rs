//! Which device each worker of `up` computes on.

use std::path::Path;
use std::str::FromStr;

use indicatif::ProgressBar;
use switchyard_worker::backend::device::{Compiled, Device, UnknownDevice, num_gpus};

use super::screen::Screen;
use crate::coordinator::Numerics;

#[cfg(test)]
mod tests;

/// What `--device` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Devices {
    /// All workers on one device.
    One(Device),
    /// Each on the next of the machine's GPUs, and from the first again when they run out.
    EachGpu,
}

// === impl Devices ===

impl Devices {
    /// The workers' devices in their order, ready for use: what can be wrong with them is found here.
    ///
    /// # Errors
    /// There is no such GPU, or its kernels cannot be compiled.
    pub(super) fn prepare(
        &self,
        num_workers: usize,
        numerics: Numerics,
        kernel_cache: &Path,
        screen: &Screen,
    ) -> anyhow::Result<Vec<Device>> {
        let devices = match self {
            Self::One(device) => vec![device.clone(); num_workers],
            Self::EachGpu => gpus(num_workers, num_gpus()?),
        };
        let bar = screen.is_terminal().then(|| screen.bars().add(ProgressBar::new_spinner()));
        let mut progress = |compiled: Compiled| match &bar {
            Some(bar) => bar.set_message(compiled.to_string()),
            None => screen.line(compiled),
        };
        let mut prepared: Vec<&Device> = Vec::new();
        for device in &devices {
            if !prepared.contains(&device) {
                let device = device.clone().with_kernel_cache(kernel_cache.to_path_buf());
                device.prepare(numerics.into(), &mut progress)?;
            }
            prepared.push(device);
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(devices)
    }
}

/// A GPU for each worker. Without any, the first is named, whose absence is then reported.
fn gpus(num_workers: usize, num_gpus: usize) -> Vec<Device> {
    let gpu = |worker| Device::cuda(worker % num_gpus.max(1));
    (0..num_workers).map(gpu).collect()
}

impl FromStr for Devices {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        if name == "cuda" { Ok(Self::EachGpu) } else { name.parse().map(Self::One) }
    }
}
