//! What the kernels take; the twins of the structs in `exchange.cu`.

use super::Address;
use super::frame::{Frames, LayoutArgs};

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PlanArgs {
    pub(super) experts: Address,
    pub(super) places: Address,
    pub(super) sent: Address,
    pub(super) slots: Address,
    pub(super) sources: Address,
    pub(super) counts: Address,
    pub(super) num_rows: u32,
    pub(super) num_topk: u32,
    pub(super) num_experts: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PackArgs {
    pub(super) frames: Frames,
    pub(super) layout: LayoutArgs,
    pub(super) x: Address,
    pub(super) weights: Address,
    pub(super) sent: Address,
    pub(super) slots: Address,
    pub(super) sources: Address,
    pub(super) counts: Address,
    pub(super) num_rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ListArgs {
    pub(super) frames: Frames,
    pub(super) slots: Address,
    pub(super) origins: Address,
    pub(super) weights: Address,
    pub(super) counts: Address,
    pub(super) num_topk: u32,
    pub(super) num_slots: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SortArgs {
    pub(super) slots: Address,
    pub(super) origins: Address,
    pub(super) weights: Address,
    pub(super) slot_counts: Address,
    pub(super) offsets: Address,
    pub(super) positions: Address,
    pub(super) sorted_origins: Address,
    pub(super) sorted_weights: Address,
    pub(super) len: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct GatherArgs {
    pub(super) frames: Frames,
    pub(super) layout: LayoutArgs,
    pub(super) origins: Address,
    pub(super) total: Address,
    pub(super) x: Address,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AnswerArgs {
    pub(super) frames: Frames,
    pub(super) layout: LayoutArgs,
    pub(super) y: Address,
    pub(super) positions: Address,
    pub(super) counts: Address,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct CombineArgs {
    pub(super) frames: Frames,
    pub(super) layout: LayoutArgs,
    pub(super) sent: Address,
    pub(super) y: Address,
}
