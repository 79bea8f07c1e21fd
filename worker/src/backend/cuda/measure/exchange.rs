//! Writing and reading the exchange's frames, of which each comes back as if from whom it went to.

use switchyard_kernels::cuda::exchange::{
    Frame, FrameLayout, Places, Received, Sent, pack_combine, pack_dispatch, plan_dispatch,
    unpack_combine, unpack_dispatch,
};
use switchyard_kernels::cuda::gate::{GateChoice, Routing, gate};
use switchyard_kernels::cuda::{Elem, Variant};

use super::{Bench, Work};

const OPS: [&str; 5] =
    ["plan_dispatch", "pack_dispatch", "unpack_dispatch", "pack_combine", "unpack_combine"];

impl Bench<'_> {
    pub(super) fn exchange(&mut self) {
        for &num_rows in &self.options.tokens {
            self.exchange_of(num_rows);
        }
    }

    fn exchange_of(&mut self, num_rows: usize) {
        let c = &self.shape.config;
        let num_ranks = self.shape.num_ranks;
        let shape = format!("{num_rows} x {} to {num_ranks}", c.hidden_size);
        let names = OPS.map(|op| self.wanted(op, &shape));
        if names.iter().all(Option::is_none) {
            return;
        }
        let gpu = self.gpu;
        let layout = FrameLayout {
            hidden: c.hidden_size,
            num_topk: c.num_experts_per_tok,
            elem: gpu.act(),
            quantized: gpu.variant() == Variant::Official,
        };
        let routing = self.routing(num_rows);
        let num_slots = c.n_routed_experts.div_ceil(num_ranks);
        let place = |expert: usize| ((expert / num_slots) as u32, (expert % num_slots) as u32);
        let places = Places::new(gpu, &(0..c.n_routed_experts).map(place).collect::<Vec<_>>());
        let x = self.activations(num_rows, c.hidden_size);
        let mut sent = Sent::new(gpu);
        let mut frames: Vec<_> = (0..num_ranks).map(|_| Frame::new(gpu)).collect();
        let mut answers: Vec<_> = (0..num_ranks).map(|_| Frame::new(gpu)).collect();
        let mut received = Received::new(gpu);

        let row_bytes = c.hidden_size * layout.elem.num_bytes();
        let num_assignments = num_rows * layout.num_topk;
        let [plan, pack, unpack, answer, combine] = names;
        plan_dispatch(gpu, &routing, &places, num_ranks, &mut sent);
        let capacities = sent.counts();
        let frame_bytes: usize = capacities.iter().map(|&size| layout.dispatch_bytes(size)).sum();
        let answer_bytes: usize = capacities.iter().map(|&size| layout.combine_bytes(size)).sum();
        let moves = |num_bytes| Work { num_bytes, num_flops: 0 };
        self.time_if(plan, moves(num_assignments * 16), |_| {
            plan_dispatch(gpu, &routing, &places, num_ranks, &mut sent);
        });
        self.time_if(pack, moves(num_rows * row_bytes + frame_bytes), |_| {
            pack_dispatch(gpu, &layout, &x, (&routing, &sent, &capacities), &mut frames);
        });
        self.time_if(unpack, moves(frame_bytes + num_assignments * row_bytes), |_| {
            unpack_dispatch(gpu, &layout, (&frames, &capacities), num_slots, &mut received);
        });
        let y = self.activations(num_assignments, c.hidden_size);
        self.time_if(answer, moves(num_assignments * row_bytes + answer_bytes), |_| {
            pack_combine(gpu, &layout, &y, (&received, &capacities), &mut answers);
        });
        let mut y = self.activations(num_rows, c.hidden_size);
        self.time_if(combine, moves(answer_bytes + 2 * num_rows * row_bytes), |_| {
            unpack_combine(gpu, &layout, &answers, &sent, &mut y);
        });
    }

    /// Runs, and reports if there is a name to report it by: later ops need what earlier ones made.
    fn time_if(&mut self, name: Option<(String, String)>, work: Work, mut run: impl FnMut(usize)) {
        match name {
            Some(name) => self.time(name, work, run),
            None => run(0),
        }
    }

    fn routing(&self, num_rows: usize) -> Routing {
        let c = &self.shape.config;
        let logits = self.numbers(Elem::F32, num_rows, c.n_routed_experts);
        let bias = self.floats(c.n_routed_experts, 0.0);
        let mut routing = Routing::new(self.gpu);
        let scaling = (c.routed_scaling_factor, c.num_experts_per_tok);
        gate(self.gpu, &logits, &GateChoice::Score { bias: &bias }, scaling, &mut routing);
        routing
    }
}
