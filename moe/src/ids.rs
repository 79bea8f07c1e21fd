//! Identities. Each is a newtype, so that a rank is never mistaken for an expert.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A rank of an expert-parallel group, `0..world_size`.
    EpRank(u32)
}
id! {
    /// An expert as the checkpoint numbers it, `0..n_routed_experts`.
    LogicalExpertId(u32)
}
id! {
    /// A place for an expert in the group, `0..world_size * slots_per_rank`; the same for every layer.
    PhysicalExpertId(u32)
}
id! {
    /// One membership and placement of a model group. Only grows; 0 means "no group yet".
    GroupEpoch(u64)
}
id! {
    /// A step of a group within one epoch, counted from 1.
    StepId(u64)
}
id! {
    /// A sequence (one choice of one request) within a coordinator's life.
    SequenceId(u64)
}
id! {
    /// A KV block of one rank's pool.
    BlockId(u32)
}
id! {
    /// A registered worker within a coordinator's life.
    WorkerId(u64)
}

/// The name by which clients ask for a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(String);

impl ModelId {
    /// Wraps a model name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as clients write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
