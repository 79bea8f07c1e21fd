use std::num::NonZeroUsize;

use super::*;

#[test]
fn the_fastest_available_set_is_detected() {
    let all = Isa::available();
    assert_eq!(all.first(), Some(&Isa::PORTABLE));
    assert_eq!(all.last(), Some(&Isa::detect()));
}

#[test]
fn every_chunk_is_visited_once_by_any_number_of_threads() {
    for num_threads in [1, 2, 5] {
        let cpu = Cpu::detect(NonZeroUsize::new(num_threads).unwrap()).unwrap();
        assert_eq!(cpu.num_threads(), num_threads);
        let mut data = vec![0_u32; 103];
        cpu.for_each_chunk(&mut data, 10, |i, chunk| {
            assert_eq!(chunk.len(), if i == 10 { 3 } else { 10 });
            for x in chunk {
                *x += 1 + i as u32;
            }
        });
        let expected: Vec<u32> = (0..103).map(|i| 1 + i / 10).collect();
        assert_eq!(data, expected);
    }
}
