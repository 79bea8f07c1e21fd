use super::*;

#[test]
fn architectures_are_checked_before_anything_is_compiled() {
    for arch in ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120f"] {
        check(arch).unwrap();
    }
    for arch in ["", "sm_", "sm_9", "90a", "compute_90", "sm_90ab", "sm_a"] {
        check(arch).unwrap_err();
    }
    let args = Args { arch: vec!["h100".to_owned(), "sm_80".to_owned()], kernel_cache: None };
    let error = run(&args).unwrap_err();
    assert!(error.to_string().starts_with("--arch h100: expected"), "{error}");
}

#[test]
#[ignore = "needs NVRTC, which is no GPU: see docs/gpu.md"]
fn a_filled_cache_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let kernel_cache = Some(dir.path().join("kernels"));
    run(&Args { arch: vec!["sm_90a".to_owned()], kernel_cache }).unwrap();
    let cache = Cache::new(dir.path().join("kernels"));
    let mut found = Vec::new();
    let mut progress = |done: Progress| found.push(done.is_new);
    compile::compile("sm_90a", Variant::Official, &cache, &mut progress).unwrap();
    assert!(!found.is_empty() && !found.contains(&true));
}
