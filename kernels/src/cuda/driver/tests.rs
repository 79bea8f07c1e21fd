use crate::cuda::Variant;
use crate::cuda::testing::gpu;

#[test]
fn big_and_small_uploads_arrive_in_order() {
    let gpu = gpu(Variant::Official);
    let data: Vec<u32> = (0..100_000_003).collect();
    let mut memory = gpu.upload(&data);
    // Small ones go another way, and must not overtake.
    memory.write(70_000_000, &[7; 1000]);
    let got = memory.read(0, data.len());
    assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
    assert_eq!(got[70_000_000..70_001_000], [7; 1000]);
    assert!(got[..70_000_000] == data[..70_000_000] && got[70_001_000..] == data[70_001_000..]);
}
