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
