//! Frames and their layout.

use std::borrow::Borrow;

use super::{Address, Elem, Gpu, Memory, Variant};

/// Ranks that a kernel's arguments have room for.
pub(super) const RANKS_MAX: usize = 128;
/// Rows and lists begin at multiples of it, in bytes.
const ALIGNMENT: usize = 16;
const HEADER_BYTES: usize = 16;
/// A slot and a weight.
const ENTRY_BYTES: usize = 8;
/// Channels of a scale.
const SCALE_BLOCK: usize = 128;

/// The room of one frame: the same for all ranks, or what is really sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCapacity {
    /// Rows of its dispatch frame.
    pub rows: usize,
    /// Rows of its combine frame.
    pub assignments: usize,
}

/// What the frames of a layer look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLayout {
    /// Channels of a row.
    pub hidden: usize,
    /// Experts of a row.
    pub num_topk: usize,
    /// Type of activations.
    pub elem: Elem,
    /// Whether rows travel in e4m3, because the experts would round them the same way: official numerics and quantised
    /// experts.
    pub quantized: bool,
}

/// Bytes on the device that a collective carries.
#[derive(Debug)]
pub struct Frame {
    gpu: Gpu,
    memory: Memory<u8>,
    len: usize,
}

/// The twin of `ExchangeFrames`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Frames {
    at: [Address; RANKS_MAX],
    rows: [u32; RANKS_MAX],
    assignments: [u32; RANKS_MAX],
    first: [u32; RANKS_MAX],
}

/// The twin of `ExchangeLayout`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LayoutArgs {
    hidden: u32,
    num_topk: u32,
    row_bytes: u32,
    scales_at: u32,
    answer_bytes: u32,
    quantized: u32,
}

// === impl FrameLayout ===

impl FrameLayout {
    /// Bytes of a dispatch frame.
    #[must_use]
    pub fn dispatch_bytes(&self, capacity: FrameCapacity) -> usize {
        let entries = capacity.rows * self.num_topk * ENTRY_BYTES;
        pad(HEADER_BYTES + entries) + capacity.rows * self.row_bytes()
    }

    /// Bytes of a combine frame.
    #[must_use]
    pub fn combine_bytes(&self, capacity: FrameCapacity) -> usize {
        capacity.assignments * self.answer_bytes()
    }

    /// Bytes of a row on its way to the experts.
    fn row_bytes(&self) -> usize {
        if self.quantized {
            pad(self.hidden) + pad(self.hidden.div_ceil(SCALE_BLOCK))
        } else {
            self.answer_bytes()
        }
    }

    /// Bytes of a row on its way back.
    fn answer_bytes(&self) -> usize {
        pad(self.hidden * self.elem.num_bytes())
    }

    /// Checks that it is of this device's numerics, and of rows with `num_topk` experts.
    pub(super) fn check(&self, gpu: &Gpu, num_topk: usize) {
        assert_eq!(self.elem, gpu.act(), "type of activations");
        assert!(!self.quantized || gpu.variant() == Variant::Official, "exact rows in e4m3");
        assert_eq!(self.num_topk, num_topk, "experts of a row");
    }

    pub(super) fn args(&self) -> LayoutArgs {
        LayoutArgs {
            hidden: self.hidden as u32,
            num_topk: self.num_topk as u32,
            row_bytes: self.row_bytes() as u32,
            scales_at: pad(self.hidden) as u32,
            answer_bytes: self.answer_bytes() as u32,
            quantized: u32::from(self.quantized),
        }
    }
}

// === impl Frame ===

impl Frame {
    /// Of no bytes.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), memory: gpu.zeros(0), len: 0 }
    }

    /// Changes the number of bytes sent; they are of any value if there was no room.
    pub fn resize(&mut self, num_bytes: usize) {
        if num_bytes > self.memory.len() {
            self.memory = self.gpu.zeros(num_bytes);
        }
        self.len = num_bytes;
    }

    /// Bytes sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are, from the first on; there may be more room.
    #[must_use]
    pub fn memory(&self) -> &Memory<u8> {
        &self.memory
    }

    /// The same, to be written.
    pub fn memory_mut(&mut self) -> &mut Memory<u8> {
        &mut self.memory
    }
}

// === impl Frames ===

impl Frames {
    /// One frame per rank, and its room.
    ///
    /// # Panics
    ///
    /// If there are more than a kernel takes.
    pub(super) fn new(frames: &[impl Borrow<Frame>], capacities: &[FrameCapacity]) -> Self {
        assert!(frames.len() <= RANKS_MAX, "{} ranks, of {RANKS_MAX} at most", frames.len());
        let zeros = [0; RANKS_MAX];
        let mut all = Self { at: [0; RANKS_MAX], rows: zeros, assignments: zeros, first: zeros };
        let mut first = 0;
        for (rank, (frame, capacity)) in frames.iter().zip(capacities).enumerate() {
            all.at[rank] = frame.borrow().memory.address();
            all.rows[rank] = capacity.rows as u32;
            all.assignments[rank] = capacity.assignments as u32;
            all.first[rank] = first;
            first += capacity.assignments as u32;
        }
        all
    }
}

/// The next multiple of the alignment.
fn pad(num_bytes: usize) -> usize {
    num_bytes.next_multiple_of(ALIGNMENT)
}
