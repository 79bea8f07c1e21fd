use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn contiguous_maps_are_inverse(num_logical in 1_usize..400, world_size in 1_usize..32) {
        let placement = Placement::contiguous(2, num_logical, world_size);
        for layer in placement.layers() {
            for expert in 0..num_logical as u32 {
                let expert = LogicalExpertId(expert);
                for &slot in layer.replicas(expert) {
                    prop_assert_eq!(layer.physical_to_logical()[slot.0 as usize], Some(expert));
                    prop_assert!((layer.rank_of(slot).0 as usize) < world_size);
                }
                prop_assert_eq!(layer.replicas(expert).len(), 1);
            }
        }
    }
}

#[test]
fn a_rank_prefers_its_own_replica() {
    let expert = Some(LogicalExpertId(0));
    let placement = Placement::new(vec![(1, vec![expert, expert])], 1, 2).unwrap();
    let layer = &placement.layers()[0];
    assert_eq!(layer.route(LogicalExpertId(0), EpRank(1)), PhysicalExpertId(1));
    assert_eq!(layer.route(LogicalExpertId(0), EpRank(0)), PhysicalExpertId(0));
}

#[test]
fn impossible_placements_are_refused() {
    let slot = |expert| Some(LogicalExpertId(expert));
    let refused = |slots| Placement::new(vec![(2, slots)], 3, 2).unwrap_err();
    assert!(matches!(refused(vec![slot(0); 3]), Error::Shape { slots: 3, .. }));
    assert!(matches!(
        refused(vec![slot(0), slot(1), slot(2), slot(3)]),
        Error::UnknownExpert { slot: 3, .. }
    ));
    assert!(matches!(
        refused(vec![slot(0), slot(1), slot(1), None]),
        Error::Homeless { expert: LogicalExpertId(2), .. }
    ));
}
