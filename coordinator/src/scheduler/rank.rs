//! One rank as the scheduler sees it: a pool of blocks and the sequences that live there.

use std::collections::BTreeSet;

use switchyard_moe::ids::SequenceId;

use super::block_pool::BlockPool;
use super::sequence::Turn;

/// The state of one rank.
#[derive(Debug)]
pub(super) struct Rank {
    pub(super) pool: BlockPool,
    /// Sequences that hold state here, in their order.
    pub(super) running: BTreeSet<Turn>,
    /// Sequences that no longer do, which the rank does not know yet.
    pub(super) released: Vec<SequenceId>,
}

// === impl Rank ===

impl Rank {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self { pool: BlockPool::new(num_blocks), running: BTreeSet::new(), released: Vec::new() }
    }
}
