use super::*;
use switchyard_moe::ids::StepId;

use crate::experts::frame::{Assignment, Outgoing, RowFormat};

fn frame(slots: &[&[u32]]) -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    for (row, slots) in (0..).zip(slots) {
        for &slot in *slots {
            outgoing.push(row, Assignment { slot, weight: 0.5 });
        }
    }
    let mut bytes = Vec::new();
    outgoing.write(&vec![1.0; slots.len() * 4], 4, RowFormat::F32, &mut bytes);
    bytes
}

fn phase(layer: u32, direction: Direction) -> Phase {
    Phase { step: StepId(1), layer, direction }
}

#[test]
fn frames_come_back_from_whom_they_went_to() {
    let mut loopback = Loopback::new(3);
    assert_eq!((loopback.rank(), loopback.world_size()), (EpRank(0), 3));
    let sent = [vec![1, 2], vec![], vec![3; 100]];
    let mut received = [vec![9; 9], vec![9; 9], vec![]];
    loopback.exchange(phase(0, Direction::Combine), &sent, &mut received).unwrap();
    assert_eq!(received, sent);
}

#[test]
fn the_census_counts_slots_of_dispatch_frames() {
    let mut loopback = Loopback::new(2);
    let sent = [frame(&[&[0, 2], &[2]]), frame(&[&[2, 5], &[0, 5]])];
    let mut received = [Vec::new(), Vec::new()];
    loopback.exchange(phase(0, Direction::Dispatch), &sent, &mut received).unwrap();
    loopback.begin_census(2);
    loopback.exchange(phase(0, Direction::Dispatch), &sent, &mut received).unwrap();
    loopback.exchange(phase(0, Direction::Combine), &sent, &mut received).unwrap();
    let empty = [Vec::new(), frame(&[&[7]])];
    loopback.exchange(phase(1, Direction::Dispatch), &empty, &mut received).unwrap();
    let census = loopback.end_census();
    assert_eq!((census.num_hit, census.num_assignments), (vec![3, 1], vec![7, 1]));
    assert_eq!(loopback.end_census(), Census::default());
}
