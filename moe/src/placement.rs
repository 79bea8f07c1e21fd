//! Where the experts live: for every layer, the physical slots of the group and the logical expert in each.

use crate::ids::{EpRank, LogicalExpertId, PhysicalExpertId};

#[cfg(test)]
mod tests;

/// The expert placement of a whole model, one [`LayerPlacement`] per layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    layers: Vec<LayerPlacement>,
    world_size: usize,
}

/// The placement of one layer. Slots of a rank are contiguous: slot `s` lives on rank `s / slots_per_rank`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlacement {
    slots_per_rank: usize,
    physical_to_logical: Vec<Option<LogicalExpertId>>,
    /// Replicas of each logical expert in ascending order, `[num_logical][num_replicas]`.
    logical_to_physical: Vec<Vec<PhysicalExpertId>>,
}

/// Why a placement is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of slots is not `world_size * slots_per_rank`.
    #[error(
        "layer {layer}: {slots} slots cannot be {slots_per_rank} on each of {world_size} ranks"
    )]
    Shape {
        /// Layer index.
        layer: usize,
        /// Slots given.
        slots: usize,
        /// Slots per rank given.
        slots_per_rank: usize,
        /// Ranks of the group.
        world_size: usize,
    },
    /// A slot names an expert that the model does not have.
    #[error("layer {layer}: slot {slot} holds expert {expert}, but the model has {num_logical}")]
    UnknownExpert {
        /// Layer index.
        layer: usize,
        /// Slot index.
        slot: usize,
        /// Expert named.
        expert: LogicalExpertId,
        /// Experts of the model.
        num_logical: usize,
    },
    /// An expert has no slot.
    #[error("layer {layer}: expert {expert} is placed nowhere")]
    Homeless {
        /// Layer index.
        layer: usize,
        /// The expert.
        expert: LogicalExpertId,
    },
}

// === impl Placement ===

impl Placement {
    /// Contiguous placement without replicas: rank r holds experts `r * slots_per_rank ..`, where
    /// `slots_per_rank` is `num_logical / world_size` rounded up.
    #[must_use]
    pub fn contiguous(num_layers: usize, num_logical: usize, world_size: usize) -> Self {
        let slots_per_rank = num_logical.div_ceil(world_size);
        let mut slots = vec![None; slots_per_rank * world_size];
        for (expert, slot) in (0..num_logical as u32).zip(slots.iter_mut()) {
            *slot = Some(LogicalExpertId(expert));
        }
        let layer = LayerPlacement::from_slots(slots_per_rank, slots, num_logical);
        Self { layers: vec![layer; num_layers], world_size }
    }

    /// Builds a placement from each layer's `(slots_per_rank, physical_to_logical)`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(
        layers: Vec<(usize, Vec<Option<LogicalExpertId>>)>,
        num_logical: usize,
        world_size: usize,
    ) -> Result<Self, Error> {
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(layer, (slots_per_rank, slots))| {
                check_layer(layer, slots_per_rank, &slots, num_logical, world_size)?;
                let built = LayerPlacement::from_slots(slots_per_rank, slots, num_logical);
                let homeless = built.logical_to_physical.iter().position(Vec::is_empty);
                match homeless {
                    Some(expert) => {
                        Err(Error::Homeless { layer, expert: LogicalExpertId(expert as u32) })
                    }
                    None => Ok(built),
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { layers, world_size })
    }

    /// The layers in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerPlacement] {
        &self.layers
    }

    /// Ranks of the group.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }
}

fn check_layer(
    layer: usize,
    slots_per_rank: usize,
    slots: &[Option<LogicalExpertId>],
    num_logical: usize,
    world_size: usize,
) -> Result<(), Error> {
    if slots.len() != slots_per_rank * world_size {
        return Err(Error::Shape { layer, slots: slots.len(), slots_per_rank, world_size });
    }
    for (slot, expert) in slots.iter().enumerate() {
        if let Some(expert) = *expert
            && expert.0 as usize >= num_logical
        {
            return Err(Error::UnknownExpert { layer, slot, expert, num_logical });
        }
    }
    Ok(())
}

// === impl LayerPlacement ===

impl LayerPlacement {
    fn from_slots(
        slots_per_rank: usize,
        physical_to_logical: Vec<Option<LogicalExpertId>>,
        num_logical: usize,
    ) -> Self {
        let mut logical_to_physical = vec![Vec::new(); num_logical];
        for (slot, expert) in physical_to_logical.iter().enumerate() {
            if let Some(expert) = expert {
                logical_to_physical[expert.0 as usize].push(PhysicalExpertId(slot as u32));
            }
        }
        Self { slots_per_rank, physical_to_logical, logical_to_physical }
    }

    /// Slots on each rank.
    #[must_use]
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// The logical expert of each slot, `[world_size * slots_per_rank]`.
    #[must_use]
    pub fn physical_to_logical(&self) -> &[Option<LogicalExpertId>] {
        &self.physical_to_logical
    }

    /// The slots that hold `expert`, ascending; never empty.
    #[must_use]
    pub fn replicas(&self, expert: LogicalExpertId) -> &[PhysicalExpertId] {
        &self.logical_to_physical[expert.0 as usize]
    }

    /// The rank on which `slot` lives.
    #[must_use]
    pub fn rank_of(&self, slot: PhysicalExpertId) -> EpRank {
        EpRank(slot.0 / self.slots_per_rank as u32)
    }

    /// The slot in which a token of rank `source` finds `expert`: its own rank's replica if there is one, else the
    /// replicas are shared out by source rank. All replicas hold the same bits, so the choice never shows.
    #[must_use]
    pub fn route(&self, expert: LogicalExpertId, source: EpRank) -> PhysicalExpertId {
        let replicas = self.replicas(expert);
        replicas
            .iter()
            .copied()
            .find(|&slot| self.rank_of(slot) == source)
            .unwrap_or(replicas[source.0 as usize % replicas.len()])
    }

    /// The logical experts in the slots of `rank`, `[slots_per_rank]`.
    #[must_use]
    pub fn experts_of(&self, rank: EpRank) -> &[Option<LogicalExpertId>] {
        let first = rank.0 as usize * self.slots_per_rank;
        &self.physical_to_logical[first..first + self.slots_per_rank]
    }
}
