//! The mixture of experts, over all ranks of the group.

use switchyard_moe::ids::StepId;

use super::Layer;
use super::pass::Pass;
use crate::backend::{Backend, MlpWeights};
use crate::collective::{self, AllToAll, Direction, Phase};
use crate::experts::FrameError;

impl<B: Backend> Pass<'_, B> {
    /// The expert sublayer of layer `index` with the mixing around it. Takes part in the exchanges even without tokens.
    pub(super) fn moe_block(
        &mut self,
        step: StepId,
        index: usize,
        layer: &Layer<B>,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
    ) -> Result<(), collective::Error> {
        let weights = &layer.weights;
        let start = self.clock();
        if !self.ids.is_empty() {
            self.enter(&weights.hyper_moe, &weights.moe_norm);
        }
        self.timings.attention += (self.clock() - start).as_secs_f64();
        self.moe(step, index, layer, all_to_all)?;
        let start = self.clock();
        if !self.ids.is_empty() {
            self.leave();
        }
        self.timings.attention += (self.clock() - start).as_secs_f64();
        Ok(())
    }

    /// `y = moe(x)`.
    pub(super) fn moe(
        &mut self,
        step: StepId,
        index: usize,
        layer: &Layer<B>,
        all_to_all: &mut dyn AllToAll<Buffer = B::Buffer>,
    ) -> Result<(), collective::Error> {
        let phase = |direction| Phase { step, layer: index as u32, direction };
        let dispatch = phase(Direction::Dispatch);
        let combine = phase(Direction::Combine);

        let start = self.clock();
        let (x, t) = (&self.work.x, &mut self.work.moe);
        self.backend.gate(&layer.weights.gate, x, self.ids, &mut t.routing);
        self.backend.pack_dispatch(&layer.routes, x, &mut t.routing, &mut t.outbound);
        all_to_all.exchange(dispatch, &t.outbound, &mut t.inbound)?;
        let dispatched = self.clock();

        self.shared_expert(&layer.weights.shared);
        let t = &mut self.work.moe;
        self.backend
            .unpack_dispatch(&t.inbound, layer.num_slots, &mut t.received)
            .map_err(|error| malformed(error, dispatch))?;
        self.expert_rows.extend(self.backend.num_received(&t.received).map(|rows| rows as u32));
        self.backend.run_experts(&layer.experts, &mut t.received);
        let computed = self.clock();

        let t = &mut self.work.moe;
        self.backend.pack_combine(&t.received, &mut t.outbound);
        all_to_all.exchange(combine, &t.outbound, &mut t.inbound)?;
        self.backend
            .unpack_combine(&t.inbound, &t.routing, &mut self.work.y)
            .map_err(|error| malformed(error, combine))?;
        self.timings.dispatch += (dispatched - start).as_secs_f64();
        self.timings.experts += (computed - dispatched).as_secs_f64();
        self.timings.combine += (self.clock() - computed).as_secs_f64();
        Ok(())
    }

    /// `y = shared(x)`, on the rank that owns the tokens.
    fn shared_expert(&mut self, weights: &MlpWeights<B::Matrix>) {
        let t = &mut self.work.moe;
        self.backend.linear(&weights.w1, &self.work.x, &mut t.gate);
        self.backend.linear(&weights.w3, &self.work.x, &mut t.up);
        self.backend.swiglu(&mut t.gate, &t.up);
        self.backend.linear(&weights.w2, &t.gate, &mut self.work.y);
    }
}

fn malformed(FrameError { peer, detail }: FrameError, phase: Phase) -> collective::Error {
    collective::Error::Malformed { culprit: peer, phase, detail }
}
