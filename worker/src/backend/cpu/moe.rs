//! Gate, dispatch, experts and combine.

use std::ops::Range;

use switchyard_kernels::combine::combine;
use switchyard_kernels::gate::{gate_scores, routing_weights, select_experts};
use switchyard_kernels::matmul::matmul;
use switchyard_kernels::swiglu::{Swiglu, swiglu};

use super::{CpuBackend, CpuMatrix, CpuTensor};
use crate::backend::{GateChoice, GateWeights, MlpWeights, peer};
use crate::experts::frame::{Assignment, CombineFrame, DispatchFrame, Outgoing, RowFormat};
use crate::experts::{FrameError, Routes};

/// Each row's experts, and where its rows went.
#[derive(Debug, Default)]
pub struct CpuRouting {
    /// `[rows, top-k]`
    experts: Vec<u32>,
    /// `[rows, top-k]`
    weights: Vec<f32>,
    num_topk: usize,
    /// What went to each rank.
    outgoing: Vec<Outgoing>,
    /// Rank and index of each assignment in that rank's frame, `[rows, top-k]`.
    sent: Vec<(u32, u32)>,
}

/// Rows of all ranks for the experts here.
#[derive(Debug, Default)]
pub struct CpuReceived {
    /// `[rows, hidden]`
    rows: Vec<f32>,
    /// Row and use of each assignment, rank by rank.
    assignments: Vec<(u32, Assignment)>,
    /// Assignments of each rank.
    of_rank: Vec<Range<usize>>,
    /// `[assignments, hidden]`
    answers: Vec<f32>,
}

/// The experts of one layer that live here, by slot.
#[derive(Debug)]
pub struct CpuExperts {
    slots: Vec<Option<MlpWeights<CpuMatrix>>>,
}

/// Memory of expert computations, all in the order of slots.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
    y: Vec<f32>,
    weights: Vec<f32>,
}

// === impl CpuExperts ===

impl CpuExperts {
    pub(super) fn new(slots: Vec<Option<MlpWeights<CpuMatrix>>>) -> Self {
        Self { slots }
    }
}

// === impl CpuRouting ===

impl CpuRouting {
    pub(super) fn pack(
        &mut self,
        routes: &Routes,
        x: &[f32],
        (hidden, format): (usize, RowFormat),
        outbound: &mut [Vec<u8>],
    ) {
        self.outgoing.resize_with(outbound.len(), Outgoing::default);
        self.outgoing.iter_mut().for_each(Outgoing::clear);
        self.sent.clear();
        for (i, (&expert, &weight)) in self.experts.iter().zip(&self.weights).enumerate() {
            let place = routes.place(expert);
            let row = (i / self.num_topk) as u32;
            let assignment = Assignment { slot: place.slot, weight };
            let index = self.outgoing[place.rank].push(row, assignment);
            self.sent.push((place.rank as u32, index));
        }
        for (outgoing, buffer) in self.outgoing.iter().zip(outbound) {
            outgoing.write(x, hidden, format, buffer);
        }
    }
}

// === impl CpuReceived ===

impl CpuReceived {
    pub(super) fn unpack(
        &mut self,
        inbound: &[Vec<u8>],
        num_slots: usize,
        (hidden, format): (usize, RowFormat),
    ) -> Result<(), FrameError> {
        self.rows.clear();
        self.assignments.clear();
        self.of_rank.clear();
        for (rank, frame) in inbound.iter().enumerate() {
            let frame = DispatchFrame::parse(frame, (hidden, format), num_slots)
                .map_err(|detail| FrameError { peer: peer(rank), detail })?;
            let first = self.assignments.len();
            let first_row = self.rows.len() / hidden;
            let rows = (first_row as u32..).zip(frame.counts());
            let rows = rows.flat_map(|(row, count)| (0..count).map(move |_| row));
            self.assignments.extend(rows.zip(frame.assignments()));
            self.rows.resize((first_row + frame.num_rows()) * hidden, 0.0);
            format.read(frame.rows(), &mut self.rows[first_row * hidden..]);
            self.of_rank.push(first..self.assignments.len());
        }
        Ok(())
    }

    pub(super) fn answer(&self, (hidden, format): (usize, RowFormat), outbound: &mut [Vec<u8>]) {
        for (range, buffer) in self.of_rank.iter().zip(outbound) {
            let rows = &self.answers[range.start * hidden..range.end * hidden];
            CombineFrame::write(rows, hidden, format, buffer);
        }
    }

    pub(super) fn num_assignments(&self) -> usize {
        self.assignments.len()
    }

    /// Indices of the assignments, by slot; within a slot as they came.
    fn by_slot(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.assignments.len()).collect();
        order.sort_by_key(|&i| self.assignments[i].1.slot);
        order
    }
}

impl CpuBackend {
    pub(super) fn route_rows(
        &mut self,
        gate: &GateWeights<Self>,
        x: &CpuTensor,
        ids: &[u32],
        routing: &mut CpuRouting,
    ) {
        let (num_experts, num_topk) = (gate.weight.rows(), self.config.num_experts_per_tok);
        let mut scores = std::mem::take(&mut self.scratch);
        scores.resize(ids.len() * num_experts, 0.0);
        if !ids.is_empty() {
            matmul(&self.cpu, x.data(), &gate.weight.view(), &mut scores);
            gate_scores(&self.cpu, &mut scores);
        }
        routing.num_topk = num_topk;
        routing.experts.clear();
        routing.weights.clear();
        for (scores, &id) in scores.chunks(num_experts).zip(ids) {
            let first = routing.experts.len();
            match &gate.choice {
                GateChoice::Score(bias) => {
                    routing.experts.extend(select_experts(scores, bias, num_topk));
                }
                GateChoice::Hash(table) => {
                    let entry = id as usize * num_topk;
                    routing.experts.extend_from_slice(&table[entry..entry + num_topk]);
                }
            }
            routing.weights.resize(first + num_topk, 0.0);
            let factor = self.config.routed_scaling_factor;
            let (experts, weights) = (&routing.experts[first..], &mut routing.weights[first..]);
            routing_weights(scores, experts, factor, weights);
        }
        self.scratch = scores;
    }

    pub(super) fn run_received(&mut self, experts: &CpuExperts, received: &mut CpuReceived) {
        let hidden = self.config.hidden_size;
        let mut scratch = std::mem::take(&mut self.experts);
        let order = received.by_slot();
        scratch.x.clear();
        scratch.weights.clear();
        for &i in &order {
            let (row, assignment) = received.assignments[i];
            let start = row as usize * hidden;
            scratch.x.extend_from_slice(&received.rows[start..start + hidden]);
            scratch.weights.push(assignment.weight);
        }
        let mut groups = Vec::new();
        let mut start = 0;
        for group in order
            .chunk_by(|&a, &b| received.assignments[a].1.slot == received.assignments[b].1.slot)
        {
            let tokens = start..start + group.len();
            let slot = received.assignments[group[0]].1.slot as usize;
            if let Some(expert) = &experts.slots[slot] {
                groups.push((tokens.clone(), expert));
            }
            start = tokens.end;
        }
        self.expert_mlps(&groups, &mut scratch);
        received.answers.resize(order.len() * hidden, 0.0);
        for (y, &i) in scratch.y.chunks(hidden).zip(&order) {
            received.answers[i * hidden..(i + 1) * hidden].copy_from_slice(y);
        }
        self.experts = scratch;
    }

    /// `y = w2 (silu(w1 x) * w3 x * weight)` for every group of rows and its expert.
    fn expert_mlps(&mut self, groups: &[(Range<usize>, &MlpWeights<CpuMatrix>)], s: &mut Scratch) {
        let (hidden, inner) = (self.config.hidden_size, self.config.moe_intermediate_size);
        let num_rows = s.weights.len();
        for buffer in [&mut s.gate, &mut s.up, &mut s.hidden] {
            buffer.resize(num_rows * inner, 0.0);
        }
        // Rows of an empty slot, which only a peer in error names, become zeros.
        s.y.clear();
        s.y.resize(num_rows * hidden, 0.0);
        let rows = |tokens: &Range<usize>, width| tokens.start * width..tokens.end * width;
        for (tokens, expert) in groups {
            let (outer, inner) = (rows(tokens, hidden), rows(tokens, inner));
            self.product(&expert.w1, &s.x[outer.clone()], &mut s.gate[inner.clone()]);
            self.product(&expert.w3, &s.x[outer], &mut s.up[inner]);
        }
        self.cast(&mut s.gate);
        self.cast(&mut s.up);
        let limit = self.config.swiglu_limit;
        let args = Swiglu { gate: &s.gate, up: &s.up, limit, routing_weights: Some(&s.weights) };
        swiglu(&self.cpu, &args, &mut s.hidden);
        self.cast(&mut s.hidden);
        for (tokens, expert) in groups {
            let (outer, inner) = (rows(tokens, hidden), rows(tokens, inner));
            self.product(&expert.w2, &s.hidden[inner], &mut s.y[outer]);
        }
        self.cast(&mut s.y);
    }

    pub(super) fn combine_rows(
        &mut self,
        inbound: &[Vec<u8>],
        routing: &CpuRouting,
        y: &mut CpuTensor,
    ) -> Result<(), FrameError> {
        let (hidden, format) = self.row_format();
        let frames: Vec<_> = inbound
            .iter()
            .zip(&routing.outgoing)
            .enumerate()
            .map(|(rank, (frame, outgoing))| {
                CombineFrame::parse(frame, (hidden, format), outgoing.assignments.len())
                    .map_err(|detail| FrameError { peer: peer(rank), detail })
            })
            .collect::<Result<_, _>>()?;
        // Top-k rows, then the shared expert's: the order of the sum.
        let mut rows = vec![0.0; (routing.num_topk + 1) * hidden];
        for (sent, y) in routing.sent.chunks(routing.num_topk).zip(y.rows_mut()) {
            for (&(rank, index), row) in sent.iter().zip(rows.chunks_mut(hidden)) {
                format.read(frames[rank as usize].row(index as usize), row);
            }
            rows[routing.num_topk * hidden..].copy_from_slice(y);
            let rows: Vec<_> = rows.chunks(hidden).collect();
            combine(&self.cpu, &rows, y);
            self.cast(y);
        }
        Ok(())
    }
}
