//! Gate, dispatch, experts and combine.

use std::borrow::{Borrow, BorrowMut};

use switchyard_kernels::cuda::exchange::{
    self, Frame, FrameCapacity, FrameLayout, Places, Received, Sent, plan_dispatch,
};
use switchyard_kernels::cuda::experts::{ExpertMatrices, matmul_experts};
use switchyard_kernels::cuda::gate::{GateChoice as Choice, Routing, gate};
use switchyard_kernels::cuda::matmul::matmul;
use switchyard_kernels::cuda::quant::fp8_round_trip;
use switchyard_kernels::cuda::swiglu::swiglu;
use switchyard_kernels::cuda::{Elem, Gpu, Tensor};
use switchyard_kernels::quant::ACTIVATION_BLOCK;

use super::{CudaBackend, CudaMatrix};
use crate::backend::{GateChoice, GateWeights, MlpWeights, peer};
use crate::experts::{FrameError, Routes};

/// The place of every expert of a layer.
#[derive(Debug)]
pub struct CudaRoutes {
    places: Places,
}

/// Each row's experts, and where its rows went.
#[derive(Debug)]
pub struct CudaRouting {
    routing: Routing,
    sent: Sent,
    /// What went to each rank.
    capacities: Vec<FrameCapacity>,
}

/// Rows of all ranks for the experts here.
#[derive(Debug)]
pub struct CudaReceived {
    received: Received,
    /// What came from each rank.
    capacities: Vec<FrameCapacity>,
    /// The experts' answers, in the order of `received`.
    y: Tensor,
}

/// A frame on the device, with the sizes that the host must know of it.
#[derive(Debug)]
pub struct CudaBuffer {
    frame: Frame,
    capacity: FrameCapacity,
}

/// The experts of one layer that live here, by slot.
#[derive(Debug)]
pub struct CudaExperts {
    w1: ExpertMatrices,
    w2: ExpertMatrices,
    w3: ExpertMatrices,
    /// Whether the input of `w1` and `w3` is to be quantised.
    quantizes_input: bool,
    /// Whether the input of `w2` is to be quantised.
    quantizes_inner: bool,
}

/// Memory of gates and experts.
#[derive(Debug)]
pub(super) struct Scratch {
    logits: Tensor,
    gate: Tensor,
    up: Tensor,
    quantized: Tensor,
}

// === impl Scratch ===

impl Scratch {
    pub(super) fn new(gpu: &Gpu) -> Self {
        let tensor = |elem| Tensor::new(gpu, elem, 1);
        let act = gpu.act();
        Self {
            logits: tensor(Elem::F32),
            gate: tensor(act),
            up: tensor(act),
            quantized: tensor(act),
        }
    }
}

// === impl CudaRoutes ===

impl CudaRoutes {
    pub(super) fn new(gpu: &Gpu, routes: &Routes) -> Self {
        let places: Vec<_> =
            routes.places().iter().map(|place| (place.rank as u32, place.slot)).collect();
        Self { places: Places::new(gpu, &places) }
    }
}

// === impl CudaRouting ===

impl CudaRouting {
    pub(super) fn new(gpu: &Gpu) -> Self {
        Self { routing: Routing::new(gpu), sent: Sent::new(gpu), capacities: Vec::new() }
    }
}

// === impl CudaReceived ===

impl CudaReceived {
    pub(super) fn new(gpu: &Gpu) -> Self {
        let y = Tensor::new(gpu, gpu.act(), 1);
        Self { received: Received::new(gpu), capacities: Vec::new(), y }
    }
}

// === impl CudaBuffer ===

impl CudaBuffer {
    pub(super) fn new(gpu: &Gpu) -> Self {
        Self { frame: Frame::new(gpu), capacity: FrameCapacity { rows: 0, assignments: 0 } }
    }

    /// The bytes.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The bytes, to be replaced.
    pub fn frame_mut(&mut self) -> &mut Frame {
        &mut self.frame
    }

    /// What the frame has room for; it travels beside the bytes.
    #[must_use]
    pub fn capacity(&self) -> FrameCapacity {
        self.capacity
    }

    /// Says what the frame has room for.
    pub fn set_capacity(&mut self, capacity: FrameCapacity) {
        self.capacity = capacity;
    }
}

impl Borrow<Frame> for CudaBuffer {
    fn borrow(&self) -> &Frame {
        &self.frame
    }
}

impl BorrowMut<Frame> for CudaBuffer {
    fn borrow_mut(&mut self) -> &mut Frame {
        &mut self.frame
    }
}

// === impl CudaExperts ===

impl CudaExperts {
    pub(super) fn new(gpu: &Gpu, slots: Vec<Option<MlpWeights<CudaMatrix>>>) -> Self {
        let first = slots.iter().flatten().next();
        let quantizes_input = first.is_some_and(|expert| expert.w1.quantizes_input());
        let quantizes_inner = first.is_some_and(|expert| expert.w2.quantizes_input());
        let (mut w1, mut w2, mut w3) = (Vec::new(), Vec::new(), Vec::new());
        for expert in slots {
            let (a, b, c) = match expert {
                Some(MlpWeights { w1, w2, w3 }) => (Some(w1), Some(w2), Some(w3)),
                None => (None, None, None),
            };
            w1.push(a.map(CudaMatrix::into_weights));
            w2.push(b.map(CudaMatrix::into_weights));
            w3.push(c.map(CudaMatrix::into_weights));
        }
        let matrices = |slots| ExpertMatrices::new(gpu, slots);
        let (w1, w2, w3) = (matrices(w1), matrices(w2), matrices(w3));
        Self { w1, w2, w3, quantizes_input, quantizes_inner }
    }
}

// === impl CudaBackend ===

impl CudaBackend {
    fn frame_layout(&self) -> FrameLayout {
        FrameLayout {
            hidden: self.config.hidden_size,
            num_topk: self.config.num_experts_per_tok,
            elem: self.gpu.act(),
            quantized: self.sends_fp8,
        }
    }

    pub(super) fn route_rows(
        &mut self,
        weights: &GateWeights<Self>,
        x: &Tensor,
        ids: &[u32],
        routing: &mut CudaRouting,
    ) {
        let logits = &mut self.experts.logits;
        if ids.is_empty() {
            logits.shape(Elem::F32, 0, weights.weight.weights().rows());
        } else {
            matmul(&self.gpu, x, weights.weight.weights(), Elem::F32, logits);
        }
        let choice = match &weights.choice {
            GateChoice::Score(bias) => Choice::Score { bias },
            // The step's ids are on the device since they were embedded.
            GateChoice::Hash(table) => Choice::Hash { table, ids: &self.ids },
        };
        let scaling = (self.config.routed_scaling_factor, self.config.num_experts_per_tok);
        gate(&self.gpu, &self.experts.logits, &choice, scaling, &mut routing.routing);
    }

    pub(super) fn send_rows(
        &mut self,
        routes: &CudaRoutes,
        x: &Tensor,
        routing: &mut CudaRouting,
        outbound: &mut [CudaBuffer],
    ) {
        let layout = self.frame_layout();
        let CudaRouting { routing, sent, capacities } = routing;
        plan_dispatch(&self.gpu, routing, &routes.places, outbound.len(), sent);
        *capacities = sent.counts();
        let plan = (&*routing, &*sent, &**capacities);
        exchange::pack_dispatch(&self.gpu, &layout, x, plan, outbound);
        for (buffer, &capacity) in outbound.iter_mut().zip(&*capacities) {
            buffer.capacity = capacity;
        }
    }

    pub(super) fn receive_rows(
        &mut self,
        inbound: &[CudaBuffer],
        num_slots: usize,
        received: &mut CudaReceived,
    ) -> Result<(), FrameError> {
        let layout = self.frame_layout();
        received.capacities.clear();
        for (rank, buffer) in inbound.iter().enumerate() {
            check_len(rank, buffer, layout.dispatch_bytes(buffer.capacity))?;
            received.capacities.push(buffer.capacity);
        }
        let inbound = (inbound, &*received.capacities);
        exchange::unpack_dispatch(&self.gpu, &layout, inbound, num_slots, &mut received.received);
        Ok(())
    }

    /// `y = w2 (silu(w1 x) * w3 x * weight)` for every row that was received, by its slot's expert.
    pub(super) fn run_received(&mut self, experts: &CudaExperts, received: &mut CudaReceived) {
        let Scratch { gate, up, quantized, .. } = &mut self.experts;
        let CudaReceived { received, y, .. } = received;
        let (mut x, offsets) = (received.x(), received.offsets());
        if experts.w1.rows() == 0 {
            // No expert lives here, so nothing was sent here.
            y.shape(self.gpu.act(), x.num_rows(), self.config.hidden_size);
            return;
        }
        if experts.quantizes_input && !self.sends_fp8 {
            fp8_round_trip(&self.gpu, x, ACTIVATION_BLOCK, quantized);
            x = quantized;
        }
        matmul_experts(&self.gpu, x, &experts.w1, offsets, gate);
        matmul_experts(&self.gpu, x, &experts.w3, offsets, up);
        swiglu(&self.gpu, gate, up, self.config.swiglu_limit, Some(received.weights()));
        if experts.quantizes_inner {
            fp8_round_trip(&self.gpu, gate, ACTIVATION_BLOCK, quantized);
            matmul_experts(&self.gpu, quantized, &experts.w2, offsets, y);
        } else {
            matmul_experts(&self.gpu, gate, &experts.w2, offsets, y);
        }
    }

    pub(super) fn answer_rows(&mut self, received: &CudaReceived, outbound: &mut [CudaBuffer]) {
        let layout = self.frame_layout();
        let plan = (&received.received, &*received.capacities);
        exchange::pack_combine(&self.gpu, &layout, &received.y, plan, outbound);
        for (buffer, &capacity) in outbound.iter_mut().zip(&received.capacities) {
            buffer.capacity = capacity;
        }
    }

    pub(super) fn combine_rows(
        &mut self,
        inbound: &[CudaBuffer],
        routing: &CudaRouting,
        y: &mut Tensor,
    ) -> Result<(), FrameError> {
        let layout = self.frame_layout();
        for (rank, (buffer, &capacity)) in inbound.iter().zip(&routing.capacities).enumerate() {
            check_len(rank, buffer, layout.combine_bytes(capacity))?;
        }
        exchange::unpack_combine(&self.gpu, &layout, inbound, &routing.sent, y);
        Ok(())
    }
}

fn check_len(rank: usize, buffer: &CudaBuffer, expected: usize) -> Result<(), FrameError> {
    if buffer.frame.len() == expected {
        return Ok(());
    }
    let FrameCapacity { rows, assignments } = buffer.capacity;
    Err(FrameError {
        peer: peer(rank),
        detail: format!(
            "{} bytes, {expected} were expected for {rows} rows with {assignments} assignments",
            buffer.frame.len()
        ),
    })
}
