//! The expert-parallel exchange: where every expert is found, and what `dispatch` and `combine` frames look like.

use switchyard_moe::ids::{EpRank, LogicalExpertId};
use switchyard_moe::placement::LayerPlacement;

pub mod frame;

/// Where one expert computes for this rank's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank.
    pub rank: usize,
    /// Its slot, counted on that rank.
    pub slot: u32,
}

/// The place of every logical expert of one layer, as seen from one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    places: Vec<Place>,
}

/// A frame that its sender cannot have meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {peer} sent a frame that cannot be read: {detail}")]
pub struct FrameError {
    /// The sender.
    pub peer: EpRank,
    /// What is wrong.
    pub detail: String,
}

// === impl Routes ===

impl Routes {
    /// The routes of `rank` through `placement`.
    #[must_use]
    pub fn new(placement: &LayerPlacement, num_experts: usize, rank: EpRank) -> Self {
        let slots = placement.slots_per_rank();
        let places = (0..num_experts as u32)
            .map(|expert| {
                let slot = placement.route(LogicalExpertId(expert), rank).0 as usize;
                Place { rank: slot / slots, slot: (slot % slots) as u32 }
            })
            .collect();
        Self { places }
    }

    /// The place of every expert.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The place of `expert`.
    #[must_use]
    pub fn place(&self, expert: u32) -> Place {
        self.places[expert as usize]
    }
}
