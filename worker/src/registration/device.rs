//! What this machine says of its processor and memory.

use std::fs;
use std::num::NonZeroUsize;

use switchyard_proto::cluster::Device;

/// The CPU as a device. What the machine does not tell is left empty.
pub(super) fn describe(num_threads: NonZeroUsize) -> Device {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    Device {
        kind: "cpu".to_owned(),
        name: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default().to_owned(),
        memory_bytes: memory_bytes(&read("/proc/meminfo")).unwrap_or_default(),
        threads: num_threads.get() as u32,
    }
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
