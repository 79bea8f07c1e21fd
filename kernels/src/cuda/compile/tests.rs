use super::*;

/// Compiles everything for the newest and the oldest architecture that is supported, then again from the cache.
fn compile_all(variant: Variant) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("kernels"));
    for arch in ["sm_80", "sm_90a"] {
        let run = || {
            let mut num_new = 0;
            let mut count = |progress: Progress| num_new += usize::from(progress.is_new);
            let modules = compile(arch, variant, &cache, &mut count).unwrap();
            (modules, num_new)
        };
        let ((cold, num_compiled), (warm, num_again)) = (run(), run());
        assert_eq!((num_compiled, num_again), (SOURCES.len(), 0), "{arch}");
        for (cold, warm) in cold.iter().zip(&warm) {
            assert!(!cold.image.is_empty(), "{} for {arch}", cold.name);
            assert_eq!(cold.image, warm.image, "{} for {arch}", cold.name);
            for kernel in kernels_of(cold.name) {
                let section = format!(".text.{kernel}\0");
                let mut names = cold.image.windows(section.len());
                assert!(names.any(|name| name == section.as_bytes()), "{kernel} for {arch}");
            }
        }
    }
}

#[test]
#[ignore = "needs NVRTC, which is no GPU: see docs/gpu.md"]
fn every_exact_kernel_compiles_once() {
    compile_all(Variant::Exact);
}

#[test]
#[ignore = "needs NVRTC, which is no GPU: see docs/gpu.md"]
fn every_official_kernel_compiles_once() {
    compile_all(Variant::Official);
}

#[test]
fn every_source_defines_kernels_of_its_own() {
    let mut names: Vec<_> = SOURCES.iter().flat_map(|(name, _)| kernels_of(name)).collect();
    assert!(SOURCES.iter().all(|(name, _)| kernels_of(name).next().is_some()));
    names.sort_unstable();
    let num_names = names.len();
    names.dedup();
    assert_eq!(names.len(), num_names, "two kernels have the same name");
}
