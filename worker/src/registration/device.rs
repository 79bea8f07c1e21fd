//! What this machine says of its processor and memory, or of a GPU.

use std::fs;
use std::num::NonZeroUsize;

use switchyard_proto::cluster::Device;

use crate::backend::device;
use crate::model;

/// Kind of device of a worker on a processor, as the coordinator knows it.
const CPU: &str = "cpu";
/// Kind of device of a worker on a GPU.
const CUDA: &str = "cuda";

/// What a worker computes on. What the machine does not tell is left empty.
///
/// # Errors
/// When there is no such GPU.
pub(crate) fn describe(
    device: &device::Device,
    num_threads: NonZeroUsize,
) -> Result<Device, model::Error> {
    let threads = num_threads.get() as u32;
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    Ok(match device.gpu()? {
        Some(gpu) => Device {
            kind: CUDA.to_owned(),
            name: gpu.name,
            memory_bytes: gpu.memory_bytes,
            threads,
        },
        None => Device {
            kind: CPU.to_owned(),
            name: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default().to_owned(),
            memory_bytes: memory_bytes(&read("/proc/meminfo")).unwrap_or_default(),
            threads,
        },
    })
}

/// The value of the first line `name : value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

pub(super) fn memory_bytes(meminfo: &str) -> Option<u64> {
    let kilobytes = field(meminfo, "MemTotal")?.strip_suffix(" kB")?;
    Some(kilobytes.trim().parse::<u64>().ok()? << 10)
}
