//! The expert-parallel exchange: dispatch and combine frames, written and read on the device.
//!
//! Both sides know how much room a frame has ([`FrameCapacity`]); its contents may be less. Little-endian:
//!
//! ```text
//! dispatch: num_rows u32 · num_assignments u32 · 0 u32 · 0 u32
//!           · room for rows x top-k x (slot + 1 u32, or 0 for none; routing weight f32), those used first, in top-k order
//!           · from the next multiple of 16 on, room for rows x row
//! combine:  room for assignments x row of activations, in the order of the dispatch frame's used entries
//! row:      hidden x f32 (exact numerics), or bf16, padded to 16 bytes; or if the experts quantise their input anyway,
//!           hidden x e4m3, padded to 16 bytes, and a ue8m0 scale per 128 channels, padded to 16 bytes
//! ```
//! A row goes once to each rank, however many of its experts are there; expert rows come back one by one, because the
//! sum over experts is the source's.

use std::borrow::{Borrow, BorrowMut};

use super::gate::Routing;
use super::{Address, Elem, Gpu, Launch, Memory, Pod, Tensor, Variant};

mod args;
mod frame;
#[cfg(test)]
#[cfg(any(feature = "cuda-emulator", feature = "gpu-tests"))]
mod tests;

use args::{AnswerArgs, CombineArgs, GatherArgs, ListArgs, PackArgs, PlanArgs, SortArgs};
use frame::Frames;
pub use frame::{Frame, FrameCapacity, FrameLayout};

/// Threads of a block that copies rows, and of one that counts.
const THREADS: u32 = 256;
const SCAN_THREADS: u32 = 512;
/// Channels of a block that adds rows up.
const SLICE: usize = 256 * 8;
/// The slots that a thread reads at once.
const SLOTS_AT_ONCE: usize = 8;
/// More would overflow a block's count of assignments.
const TOPK_MAX: usize = 1024;

/// Where each expert computes.
#[derive(Debug)]
pub struct Places {
    /// `[num_experts]`, rank and slot.
    places: Memory<u32>,
}

/// What went where.
#[derive(Debug)]
pub struct Sent {
    /// `[num_rows, num_topk]`, rank and index among the assignments of its frame.
    sent: Memory<u32>,
    /// `[num_rows, num_topk]`
    slots: Memory<u32>,
    /// `[num_ranks, num_rows]`, the rows of each frame.
    sources: Memory<u32>,
    /// `[num_ranks]`, rows and assignments.
    counts: Memory<u32>,
    num_rows: usize,
    num_topk: usize,
    num_ranks: usize,
}

/// The rows of all ranks, sorted by slot; within a slot by rank, then in the order of the frame.
#[derive(Debug)]
pub struct Received {
    x: Tensor,
    weights: Memory<f32>,
    offsets: Memory<u32>,
    /// Slot, rank and row, and weight of each assignment, in the order of the frames.
    slots: Memory<u32>,
    origins: Memory<u32>,
    unsorted_weights: Memory<f32>,
    /// `[num_ranks]`, assignments.
    counts: Memory<u32>,
    /// `[num_slots]`
    slot_counts: Memory<u32>,
    /// Each assignment's sorted row.
    positions: Memory<u32>,
    /// Each sorted row's origin.
    sorted_origins: Memory<u32>,
}

// === impl Places ===

impl Places {
    /// Rank and slot of each expert.
    #[must_use]
    pub fn new(gpu: &Gpu, places: &[(u32, u32)]) -> Self {
        let flat: Vec<u32> = places.iter().flat_map(|&(rank, slot)| [rank, slot]).collect();
        Self { places: gpu.upload(&flat) }
    }
}

// === impl Sent ===

impl Sent {
    /// Nothing to no rank.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let empty = || gpu.zeros(0);
        let (num_rows, num_topk, num_ranks) = (0, 0, 0);
        let (sent, slots, sources, counts) = (empty(), empty(), empty(), empty());
        Self { sent, slots, sources, counts, num_rows, num_topk, num_ranks }
    }

    /// Rows and assignments for each rank. Waits for the device.
    #[must_use]
    pub fn counts(&self) -> Vec<FrameCapacity> {
        let counts = self.counts.read(0, 2 * self.num_ranks);
        let pairs = counts.as_chunks().0.iter();
        pairs
            .map(|&[rows, assignments]| FrameCapacity {
                rows: rows as usize,
                assignments: assignments as usize,
            })
            .collect()
    }
}

// === impl Received ===

impl Received {
    /// Of no rows.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let empty = || gpu.zeros(0);
        Self {
            x: Tensor::new(gpu, gpu.act(), 1),
            weights: gpu.zeros(0),
            offsets: empty(),
            slots: empty(),
            origins: empty(),
            unsorted_weights: gpu.zeros(0),
            counts: empty(),
            slot_counts: empty(),
            positions: empty(),
            sorted_origins: empty(),
        }
    }

    /// The rows, `[room for assignments of all frames, hidden]`; those from the last offset on are of any value.
    #[must_use]
    pub fn x(&self) -> &Tensor {
        &self.x
    }

    /// The routing weight of each row, and as many more as `x` has rows or above.
    #[must_use]
    pub fn weights(&self) -> &Memory<f32> {
        &self.weights
    }

    /// Where the rows of each slot begin, then where the last one's end: `[num_slots + 1]` at least.
    #[must_use]
    pub fn offsets(&self) -> &Memory<u32> {
        &self.offsets
    }

    fn shape(&mut self, gpu: &Gpu, [len, num_ranks, num_slots]: [usize; 3]) {
        grow(gpu, &mut self.weights, len);
        grow(gpu, &mut self.offsets, num_slots + 1);
        grow(gpu, &mut self.slots, len + SLOTS_AT_ONCE);
        grow(gpu, &mut self.origins, 2 * len);
        grow(gpu, &mut self.unsorted_weights, len);
        grow(gpu, &mut self.counts, num_ranks);
        grow(gpu, &mut self.slot_counts, num_slots);
        grow(gpu, &mut self.positions, len);
        grow(gpu, &mut self.sorted_origins, 2 * len);
    }
}

/// Decides where every row and expert of `routing` goes.
///
/// # Panics
///
/// If there are no ranks.
pub fn plan_dispatch(
    gpu: &Gpu,
    routing: &Routing,
    places: &Places,
    num_ranks: usize,
    sent: &mut Sent,
) {
    let (num_rows, num_topk) = (routing.num_rows(), routing.num_topk());
    assert!((1..=frame::RANKS_MAX).contains(&num_ranks), "{num_ranks} ranks");
    assert!(num_topk <= TOPK_MAX, "{num_topk} experts of a row, of {TOPK_MAX} at most");
    (sent.num_rows, sent.num_topk, sent.num_ranks) = (num_rows, num_topk, num_ranks);
    grow(gpu, &mut sent.sent, 2 * num_rows * num_topk);
    grow(gpu, &mut sent.slots, num_rows * num_topk);
    grow(gpu, &mut sent.sources, num_ranks * num_rows);
    grow(gpu, &mut sent.counts, 2 * num_ranks);
    let args = PlanArgs {
        experts: routing.experts().address(),
        places: places.places.address(),
        sent: sent.sent.address(),
        slots: sent.slots.address(),
        sources: sent.sources.address(),
        counts: sent.counts.address(),
        num_rows: num_rows as u32,
        num_topk: num_topk as u32,
        num_experts: (places.places.len() / 2) as u32,
    };
    let launch = scan("exchange_plan", num_ranks);
    // SAFETY: the routing has `num_rows` rows of `num_topk`, and the plan was given its room.
    unsafe { gpu.launch(launch, &args) };
}

/// Writes one dispatch frame per rank, of the rows of `x` `[num_rows, hidden]`; `capacities` size the frames. What exceeds
/// them is left out.
///
/// # Panics
///
/// If plan, routing and `x` are of other rows, or the capacities or frames not one per rank.
pub fn pack_dispatch(
    gpu: &Gpu,
    layout: &FrameLayout,
    x: &Tensor,
    (routing, sent, capacities): (&Routing, &Sent, &[FrameCapacity]),
    outbound: &mut [impl BorrowMut<Frame>],
) {
    layout.check(gpu, sent.num_topk);
    assert_eq!(x.cols(), layout.hidden, "width of x");
    assert_eq!(x.num_rows(), sent.num_rows, "rows of x");
    assert_eq!(routing.num_rows(), sent.num_rows, "rows of the routing");
    assert_eq!(capacities.len(), sent.num_ranks, "capacities of ranks");
    assert_eq!(outbound.len(), sent.num_ranks, "frames of ranks");
    for (frame, &capacity) in outbound.iter_mut().zip(capacities) {
        frame.borrow_mut().resize(layout.dispatch_bytes(capacity));
    }
    let args = PackArgs {
        frames: Frames::new(outbound, capacities),
        layout: layout.args(),
        x: x.act(),
        weights: routing.weights().address(),
        sent: sent.sent.address(),
        slots: sent.slots.address(),
        sources: sent.sources.address(),
        counts: sent.counts.address(),
        num_rows: sent.num_rows as u32,
    };
    // A block even where there is no row, for the headers.
    let most = capacities.iter().map(|capacity| capacity.rows).max().unwrap_or(0).max(1);
    let grid = [most as u32, sent.num_ranks as u32, 1];
    let launch = rows("exchange_pack_dispatch", grid);
    // SAFETY: the frames were sized for the capacities, which the kernel keeps to; the plan's rows are those of `x`.
    unsafe { gpu.launch(launch, &args) };
}

/// Sorts the rows of all ranks' dispatch frames by the `num_slots` slots here; the capacities are those that the frames
/// were written with. Entries that cannot have been meant are ignored.
///
/// # Panics
///
/// If there are no slots, or a frame is shorter than its capacity asks for.
pub fn unpack_dispatch(
    gpu: &Gpu,
    layout: &FrameLayout,
    (inbound, capacities): (&[impl Borrow<Frame>], &[FrameCapacity]),
    num_slots: usize,
    received: &mut Received,
) {
    layout.check(gpu, layout.num_topk);
    assert!(num_slots > 0, "a rank has slots");
    assert_eq!(inbound.len(), capacities.len(), "frames and capacities");
    for (frame, &capacity) in inbound.iter().zip(capacities) {
        let (len, needed) = (frame.borrow().len(), layout.dispatch_bytes(capacity));
        assert!(len >= needed, "a dispatch frame of {len} bytes, not {needed}");
    }
    let len = capacities.iter().map(|capacity| capacity.assignments).sum();
    received.shape(gpu, [len, inbound.len(), num_slots]);
    received.x.shape(gpu.act(), len, layout.hidden);
    let frames = Frames::new(inbound, capacities);
    list(gpu, layout, (&frames, inbound.len()), num_slots, received);
    sort(gpu, len, num_slots, received);
    let args = GatherArgs {
        frames,
        layout: layout.args(),
        origins: received.sorted_origins.address(),
        total: received.offsets.address_of(num_slots),
        x: received.x.act(),
    };
    let launch = rows("exchange_gather", [len as u32, 1, 1]);
    // SAFETY: origins are rows of the frames, at most `len`, for which `x` has room.
    unsafe { gpu.launch(launch, &args) };
}

/// Lists the assignments of all frames.
fn list(
    gpu: &Gpu,
    layout: &FrameLayout,
    (frames, num_ranks): (&Frames, usize),
    num_slots: usize,
    received: &Received,
) {
    let args = ListArgs {
        frames: *frames,
        slots: received.slots.address(),
        origins: received.origins.address(),
        weights: received.unsorted_weights.address(),
        counts: received.counts.address(),
        num_topk: layout.num_topk as u32,
        num_slots: num_slots as u32,
    };
    let launch = scan("exchange_list", num_ranks);
    // SAFETY: the frames are as long as their capacities ask for, and the lists have room for as many assignments.
    unsafe { gpu.launch(launch, &args) };
}

/// Gives each of the `len` listed assignments its place.
fn sort(gpu: &Gpu, len: usize, num_slots: usize, received: &Received) {
    let args = SortArgs {
        slots: received.slots.address(),
        origins: received.origins.address(),
        weights: received.unsorted_weights.address(),
        slot_counts: received.slot_counts.address(),
        offsets: received.offsets.address(),
        positions: received.positions.address(),
        sorted_origins: received.sorted_origins.address(),
        sorted_weights: received.weights.address(),
        len: len as u32,
    };
    // SAFETY: the lists have room for `len` assignments, the counts for `num_slots`.
    unsafe { gpu.launch(scan("exchange_count", num_slots), &args) };
    // SAFETY: the same.
    unsafe { gpu.launch(scan("exchange_place", num_slots), &args) };
}

/// Writes the sorted expert rows `y` `[room for assignments of all frames, hidden]` into one combine frame per rank; the
/// capacities are those of [`unpack_dispatch`].
///
/// # Panics
///
/// If there are fewer rows, or frames and capacities are not as many.
pub fn pack_combine(
    gpu: &Gpu,
    layout: &FrameLayout,
    y: &Tensor,
    (received, capacities): (&Received, &[FrameCapacity]),
    outbound: &mut [impl BorrowMut<Frame>],
) {
    layout.check(gpu, layout.num_topk);
    let len: usize = capacities.iter().map(|capacity| capacity.assignments).sum();
    assert_eq!(y.cols(), layout.hidden, "width of y");
    assert!(y.num_rows() >= len, "{} rows of y for {len} assignments", y.num_rows());
    assert_eq!(received.x.num_rows(), len, "room of what was received");
    assert_eq!(outbound.len(), capacities.len(), "frames and capacities");
    for (frame, &capacity) in outbound.iter_mut().zip(capacities) {
        frame.borrow_mut().resize(layout.combine_bytes(capacity));
    }
    let args = AnswerArgs {
        frames: Frames::new(outbound, capacities),
        layout: layout.args(),
        y: y.act(),
        positions: received.positions.address(),
        counts: received.counts.address(),
    };
    let most = capacities.iter().map(|capacity| capacity.assignments).max().unwrap_or(0);
    let launch = rows("exchange_pack_combine", [most as u32, outbound.len() as u32, 1]);
    // SAFETY: the frames have room for the capacities, which the kernel keeps to; positions are below `len`.
    unsafe { gpu.launch(launch, &args) };
}

/// `y[row] =` the row's expert rows in top-k order, then what `y` `[num_rows, hidden]` holds: the shared expert's. Summed
/// in `f32`.
///
/// # Panics
///
/// If `y` is not of the rows that were sent, or there is not a frame per rank.
pub fn unpack_combine(
    gpu: &Gpu,
    layout: &FrameLayout,
    inbound: &[impl Borrow<Frame>],
    sent: &Sent,
    y: &mut Tensor,
) {
    layout.check(gpu, sent.num_topk);
    assert_eq!(y.cols(), layout.hidden, "width of y");
    assert_eq!(y.num_rows(), sent.num_rows, "rows of y");
    assert_eq!(inbound.len(), sent.num_ranks, "frames of ranks");
    let row_bytes = layout.combine_bytes(FrameCapacity { rows: 0, assignments: 1 });
    let capacities: Vec<_> = inbound
        .iter()
        .map(|frame| FrameCapacity { rows: 0, assignments: frame.borrow().len() / row_bytes })
        .collect();
    let args = CombineArgs {
        frames: Frames::new(inbound, &capacities),
        layout: layout.args(),
        sent: sent.sent.address(),
        y: y.act(),
    };
    let grid = [y.num_rows() as u32, layout.hidden.div_ceil(SLICE) as u32, 1];
    let launch = rows("exchange_unpack_combine", grid);
    // SAFETY: ranks of the plan have a frame each, and the kernel keeps to the frames' lengths.
    unsafe { gpu.launch(launch, &args) };
}

fn scan(kernel: &'static str, num_blocks: usize) -> Launch {
    Launch { kernel, grid: [num_blocks as u32, 1, 1], block: SCAN_THREADS, shared_bytes: 0 }
}

fn rows(kernel: &'static str, grid: [u32; 3]) -> Launch {
    Launch { kernel, grid, block: THREADS, shared_bytes: 0 }
}

/// Makes room for `len` numbers, which are of any value then.
fn grow<T: Pod>(gpu: &Gpu, memory: &mut Memory<T>, len: usize) {
    if len > memory.len() {
        *memory = gpu.zeros(len.next_power_of_two());
    }
}
