use super::*;

#[test]
fn the_machine_is_read_from_proc() {
    let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: a b\n";
    assert_eq!(device::field(cpuinfo, "model name"), Some("Some CPU @ 2.0GHz"));
    assert_eq!(device::field(cpuinfo, "bogomips"), None);
    let meminfo = "MemTotal:       16384 kB\nMemFree:         1 kB\n";
    assert_eq!(device::memory_bytes(meminfo), Some(16 << 20));
    assert_eq!(device::memory_bytes("MemTotal: lots"), None);
}

#[test]
fn refusals_are_final_and_outages_are_not() {
    for code in [Code::FailedPrecondition, Code::NotFound, Code::InvalidArgument] {
        assert!(is_final(code), "{code}");
    }
    for code in [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::Internal] {
        assert!(!is_final(code), "{code}");
    }
}

#[test]
fn a_processor_is_described_and_a_missing_gpu_is_refused() {
    use crate::backend::device::Device;
    use std::num::NonZeroUsize;

    let threads = NonZeroUsize::new(3).unwrap();
    let cpu = device::describe(&Device::Cpu, threads).unwrap();
    assert_eq!((cpu.kind.as_str(), cpu.threads), ("cpu", 3));
    // No machine has so many.
    let gpu: Device = "cuda:4095".parse().unwrap();
    let error = crate::chain(&device::describe(&gpu, threads).unwrap_err());
    assert!(error.starts_with("cannot set up the device: "), "{error}");
    #[cfg(feature = "cuda-emulator")]
    assert_eq!(device::describe(&Device::Emulated, threads).unwrap().kind, "cuda");
}
