use super::*;

#[test]
fn the_share_is_of_the_slower_ceiling() {
    let row = Measured {
        op: "op".to_owned(),
        shape: "shape".to_owned(),
        seconds: 2.0,
        num_bytes: 4e12,
        num_flops: 1e12,
    };
    let ceilings = Ceilings::new("NVIDIA H200", 4e12);
    assert_eq!(ceilings.flops, Some(989e12));
    assert_eq!(row.share(&ceilings), 0.5);
    let computing = Measured { num_bytes: 0.0, num_flops: 989e12, ..row };
    assert_eq!(computing.share(&ceilings), 0.5);
    assert_eq!(computing.share(&Ceilings::new("another", 4e12)), 0.0);
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn every_kernel_runs() {
    let config = crate::bench::step::tests::tiny();
    let options = Options {
        models: vec![Shape { name: "tiny".to_owned(), config, num_ranks: 2 }],
        tokens: vec![2],
        rows_per_expert: vec![1],
        batches: vec![1],
        contexts: vec![100],
        copy_bytes: 1 << 12,
        rotated_bytes: 1,
        row_seconds: 0.0,
        ..Options::published(Device::Emulated, String::new())
    };
    let report = run(&options, &mut |_| {}).unwrap();
    let ops: std::collections::BTreeSet<_> = report.rows.iter().map(|row| &*row.op).collect();
    assert_eq!(ops.len(), 26, "{ops:?}");
    for row in &report.rows {
        assert!(row.seconds > 0.0 && row.num_bytes > 0.0, "{row:?}");
    }
    let one = run(&Options { filter: "pack_combine".to_owned(), ..options }, &mut |_| {}).unwrap();
    let ops: Vec<_> = one.rows.iter().map(|row| &*row.op).collect();
    assert_eq!(ops, ["pack_combine", "unpack_combine"]);
}
