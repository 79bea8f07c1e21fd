//! The free list of one rank's KV blocks.

use switchyard_moe::ids::BlockId;

/// Blocks `0..num_blocks`; the one freed last is given out first, since it is warm in the rank's caches.
#[derive(Debug)]
pub(super) struct BlockPool {
    /// Free blocks; the end is given out first.
    free: Vec<BlockId>,
    num_blocks: usize,
}

// === impl BlockPool ===

impl BlockPool {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self { free: (0..num_blocks as u32).rev().map(BlockId).collect(), num_blocks }
    }

    pub(super) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Takes `count` blocks out, or none when there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(count)?;
        let mut taken = self.free.split_off(rest);
        taken.reverse();
        Some(taken)
    }

    /// Puts blocks back that [`take`](Self::take) gave out.
    pub(super) fn put(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks.into_iter().rev());
        debug_assert!(self.free.len() <= self.num_blocks, "a block was freed twice");
    }
}
