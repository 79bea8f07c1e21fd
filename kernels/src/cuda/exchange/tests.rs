use super::*;
use crate::Cpu;
use crate::cuda::testing::{cpu, gpus};
use crate::quant::{ACTIVATION_BLOCK, fp8_round_trip, round_bf16};
use crate::testing::{assert_bits, noise, noise_bytes};

/// What one rank brings into the exchange.
struct Source {
    experts: Vec<u32>,
    weights: Vec<f32>,
    x: Vec<f32>,
    shared: Vec<f32>,
}

/// Ranks of one process. Expert `e` is in slot `e / num_ranks` of rank `e % num_ranks`.
struct World<'a> {
    gpu: &'a Gpu,
    cpu: Cpu,
    layout: FrameLayout,
    num_experts: usize,
    sources: Vec<Source>,
}

/// How frames are sized.
#[derive(Clone, Copy)]
enum Room {
    Exact,
    Padded { more_rows: usize },
}

/// State that ranks reuse from one exchange to the next.
struct Rank {
    routing: Routing,
    sent: Sent,
    received: Received,
}

impl Rank {
    fn new(gpu: &Gpu) -> Self {
        Self { routing: Routing::new(gpu), sent: Sent::new(gpu), received: Received::new(gpu) }
    }
}

/// Rounds to the activation type.
fn cast(gpu: &Gpu, cpu: &Cpu, x: &mut [f32]) {
    if gpu.act() == Elem::Bf16 {
        round_bf16(cpu, x);
    }
}

/// What an expert makes of a row, not rounded yet.
fn expert(expert: usize, weight: f32, x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| (x + expert as f32 * 0.125) * weight).collect()
}

impl<'a> World<'a> {
    /// `num_rows` of each rank; `chooses` gives the expert of a number.
    fn new(
        gpu: &'a Gpu,
        layout: FrameLayout,
        (num_rows, num_experts): (&[usize], usize),
        chooses: impl Fn(usize) -> u32,
    ) -> Self {
        let cpu = cpu();
        let source = |(rank, &rows): (usize, &usize)| {
            let seed = rank as u32 * 4;
            let random = noise_bytes(seed, rows * layout.num_topk);
            let cast_noise = |seed, factor: f32| {
                let mut x = noise(seed, rows * layout.hidden);
                x.iter_mut().for_each(|x| *x *= factor);
                cast(gpu, &cpu, &mut x);
                x
            };
            Source {
                experts: random.iter().enumerate().map(|(i, &r)| chooses(i + r as usize)).collect(),
                weights: noise(seed + 1, rows * layout.num_topk),
                x: cast_noise(seed + 2, 3.0),
                shared: cast_noise(seed + 3, 1.0),
            }
        };
        let sources = num_rows.iter().enumerate().map(source).collect();
        Self { gpu, cpu, layout, num_experts, sources }
    }

    fn num_ranks(&self) -> usize {
        self.sources.len()
    }

    fn num_slots(&self) -> usize {
        self.num_experts.div_ceil(self.num_ranks())
    }

    /// Rows `[len / hidden, hidden]` as activations; none is allowed.
    fn upload(&self, data: &[f32]) -> Tensor {
        Tensor::upload(self.gpu, self.gpu.act(), data, self.layout.hidden)
    }

    /// A frame that held something else before.
    fn used_frame(&self) -> Frame {
        let mut frame = Frame::new(self.gpu);
        frame.resize(1 << 12);
        frame.memory_mut().write(0, &[0xff; 1 << 12]);
        frame
    }

    fn used_frames(&self) -> Vec<Frame> {
        (0..self.num_ranks()).map(|_| self.used_frame()).collect()
    }

    /// The frames of `rank` and their sizes.
    fn dispatch(
        &self,
        rank: &mut Rank,
        source: &Source,
        room: Room,
    ) -> (Vec<Frame>, Vec<FrameCapacity>) {
        let (gpu, num_ranks) = (self.gpu, self.num_ranks());
        let place = |e: usize| ((e % num_ranks) as u32, (e / num_ranks) as u32);
        let places = Places::new(gpu, &(0..self.num_experts).map(place).collect::<Vec<_>>());
        rank.routing.set(gpu, &source.experts, &source.weights, self.layout.num_topk);
        plan_dispatch(gpu, &rank.routing, &places, num_ranks, &mut rank.sent);
        let counts = rank.sent.counts();
        let capacities = match room {
            Room::Exact => counts,
            Room::Padded { more_rows } => {
                let rows = source.experts.len() / self.layout.num_topk + more_rows;
                vec![FrameCapacity { rows, assignments: rows * self.layout.num_topk }; num_ranks]
            }
        };
        let mut frames = self.used_frames();
        let plan = (&rank.routing, &rank.sent, &capacities[..]);
        pack_dispatch(gpu, &self.layout, &self.upload(&source.x), plan, &mut frames);
        (frames, capacities)
    }

    /// The answers of rank `index` to the frames of all.
    fn answer(
        &self,
        index: usize,
        received: &mut Received,
        (frames, capacities): (&[Frame], &[FrameCapacity]),
    ) -> Vec<Frame> {
        let (gpu, hidden, num_slots) = (self.gpu, self.layout.hidden, self.num_slots());
        unpack_dispatch(gpu, &self.layout, (frames, capacities), num_slots, received);
        let offsets = received.offsets().read(0, num_slots + 1);
        let weights = received.weights().read(0, received.x().num_rows());
        let num_received = offsets[num_slots] as usize;
        assert_bits(&weights[..num_received], &self.sorted_weights(index), "weights by slot");
        let mut y = received.x().download();
        y[num_received * hidden..].fill(f32::NAN);
        for (slot, bounds) in offsets.windows(2).enumerate() {
            for row in bounds[0] as usize..bounds[1] as usize {
                let y = &mut y[row * hidden..(row + 1) * hidden];
                y.copy_from_slice(&expert(slot * self.num_ranks() + index, weights[row], y));
            }
        }
        let mut outbound = self.used_frames();
        let plan = (&*received, capacities);
        pack_combine(gpu, &self.layout, &self.upload(&y), plan, &mut outbound);
        outbound
    }

    /// The weights of all assignments to `rank`: by slot, then by source, row and top-k order.
    fn sorted_weights(&self, rank: usize) -> Vec<f32> {
        let of_expert = |expert: usize| {
            self.sources.iter().flat_map(move |source| {
                let assignments = source.experts.iter().zip(&source.weights);
                assignments.filter(move |(e, _)| **e as usize == expert).map(|(_, weight)| *weight)
            })
        };
        (rank..self.num_experts).step_by(self.num_ranks()).flat_map(of_expert).collect()
    }

    /// Every rank's result.
    fn run(&self, ranks: &mut [Rank], room: Room) -> Vec<Vec<f32>> {
        let (mut frames, capacities): (Vec<_>, Vec<_>) = ranks
            .iter_mut()
            .zip(&self.sources)
            .map(|(rank, source)| self.dispatch(rank, source, room))
            .unzip();
        let mut answers = Vec::new();
        for (index, rank) in ranks.iter_mut().enumerate() {
            let inbound: Vec<_> = frames.iter_mut().map(|frames| frames.remove(0)).collect();
            let capacities: Vec<_> = capacities.iter().map(|of| of[index]).collect();
            answers.push(self.answer(index, &mut rank.received, (&inbound, &capacities)));
        }
        let combine = |(rank, source): (&mut Rank, &Source)| {
            let inbound: Vec<_> = answers.iter_mut().map(|answers| answers.remove(0)).collect();
            let mut y = self.upload(&source.shared);
            unpack_combine(self.gpu, &self.layout, &inbound, &rank.sent, &mut y);
            y.download()
        };
        let results = ranks.iter_mut().zip(&self.sources).map(combine).collect();
        assert!(self.gpu.fault().is_none(), "{:?}", self.gpu.fault());
        results
    }

    /// The same without any exchange.
    fn direct(&self, source: &Source) -> Vec<f32> {
        let (hidden, num_topk) = (self.layout.hidden, self.layout.num_topk);
        let mut result = source.shared.clone();
        for (row, y) in result.chunks_mut(hidden).enumerate() {
            let mut x = source.x[row * hidden..(row + 1) * hidden].to_vec();
            if self.layout.quantized {
                fp8_round_trip(&self.cpu, &mut x, ACTIVATION_BLOCK);
                cast(self.gpu, &self.cpu, &mut x);
            }
            let mut sums = vec![0.0; hidden];
            for k in row * num_topk..(row + 1) * num_topk {
                if source.experts[k] as usize >= self.num_experts {
                    continue;
                }
                let mut answer = expert(source.experts[k] as usize, source.weights[k], &x);
                cast(self.gpu, &self.cpu, &mut answer);
                sums.iter_mut().zip(answer).for_each(|(sum, answer)| *sum += answer);
            }
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
        }
        cast(self.gpu, &self.cpu, &mut result);
        result
    }

    /// Exact and padded frames both give what no exchange gives.
    fn check(&self, ranks: &mut [Rank]) {
        self.check_in(Room::Padded { more_rows: 3 }, ranks);
        self.check_in(Room::Exact, ranks);
    }

    fn check_in(&self, room: Room, ranks: &mut [Rank]) {
        for (rank, result) in self.run(ranks, room).iter().enumerate() {
            assert_bits(result, &self.direct(&self.sources[rank]), &format!("rank {rank}"));
        }
    }
}

/// The layouts of a device.
fn layouts(gpu: &Gpu, hidden: usize, num_topk: usize) -> Vec<FrameLayout> {
    let layout = FrameLayout { hidden, num_topk, elem: gpu.act(), quantized: false };
    match gpu.variant() {
        Variant::Exact => vec![layout],
        Variant::Official => vec![layout, FrameLayout { quantized: true, ..layout }],
    }
}

fn ranks(gpu: &Gpu, num_ranks: usize) -> Vec<Rank> {
    (0..num_ranks).map(|_| Rank::new(gpu)).collect()
}

#[test]
fn an_exchange_gives_what_one_rank_would() {
    for gpu in gpus() {
        let mut four = ranks(&gpu, 4);
        for layout in layouts(&gpu, 264, 6) {
            let shape = (&[5, 0, 17, 3][..], 26);
            World::new(&gpu, layout, shape, |i| (i * 7 % 26) as u32).check(&mut four);
            // Fewer rows after more, all for one rank.
            let shape = (&[2, 4, 0, 1][..], 26);
            World::new(&gpu, layout, shape, |i| (i % 6 * 4) as u32).check(&mut four);
            let shape = (&[0, 0, 0, 0][..], 26);
            World::new(&gpu, layout, shape, |_| 0).check(&mut four);
        }
    }
}

#[test]
fn any_shape_will_do() {
    for gpu in gpus() {
        for (hidden, num_topk, num_rows, num_experts) in [
            (33, 3, &[4, 7][..], 20),
            (7, 1, &[6][..], 1),
            (129, 5, &[1, 3][..], 16),
            (12, 2, &[0, 2, 0][..], 5),
        ] {
            for layout in layouts(&gpu, hidden, num_topk) {
                let shape = (num_rows, num_experts);
                let world = World::new(&gpu, layout, shape, |i| (i * 5 % num_experts) as u32);
                world.check(&mut ranks(&gpu, num_rows.len()));
            }
        }
    }
}

#[test]
fn many_ranks_and_slots_will_do() {
    let [gpu, _] = gpus();
    let layout = layouts(&gpu, 4, 6)[0];
    let world = World::new(&gpu, layout, (&[1; 16][..], 48), |i| (i % 48) as u32);
    world.check_in(Room::Exact, &mut ranks(&gpu, 16));
    let world = World::new(&gpu, layout, (&[40][..], 384), |i| (i * 5 % 384) as u32);
    world.check_in(Room::Padded { more_rows: 1 }, &mut ranks(&gpu, 1));
}

#[test]
fn rows_are_counted_beyond_a_blocks_threads() {
    let [gpu, _] = gpus();
    let layout = layouts(&gpu, 4, 3)[0];
    let world =
        World::new(&gpu, layout, (&[SCAN_THREADS as usize + 90, 2][..], 4), |i| (i % 4) as u32);
    world.check_in(Room::Exact, &mut ranks(&gpu, 2));
    // All for one slot, and more than a block sorts at once.
    let num_rows = SCAN_THREADS as usize * SLOTS_AT_ONCE / 3 + 5;
    let world = World::new(&gpu, layout, (&[num_rows][..], 1), |_| 0);
    world.check_in(Room::Exact, &mut ranks(&gpu, 1));
}

#[test]
fn experts_that_are_nowhere_add_nothing() {
    for gpu in gpus() {
        let layout = layouts(&gpu, 16, 3)[0];
        let world = World::new(&gpu, layout, (&[6, 5][..], 8), |i| (i * 3 % 11) as u32);
        world.check(&mut ranks(&gpu, 2));
    }
}

#[test]
fn a_frame_is_laid_out_as_documented() {
    let [gpu, _] = gpus();
    let layout = FrameLayout { hidden: 4, num_topk: 3, elem: Elem::F32, quantized: false };
    let (mut routing, mut sent) = (Routing::new(&gpu), Sent::new(&gpu));
    routing.set(&gpu, &[0, 1, 2, 1, 3, 1], &[0.5, 1.5, 2.5, 3.5, 4.5, 5.5], 3);
    let places = Places::new(&gpu, &[(0, 7), (1, 5), (0, 0), (1, 6)]);
    plan_dispatch(&gpu, &routing, &places, 2, &mut sent);
    let counts = sent.counts();
    let capacity = |rows, assignments| FrameCapacity { rows, assignments };
    assert_eq!(counts, [capacity(1, 2), capacity(2, 4)]);
    let x = Tensor::upload(&gpu, Elem::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 4);
    let mut frames = [Frame::new(&gpu), Frame::new(&gpu)];
    pack_dispatch(&gpu, &layout, &x, (&routing, &sent, &counts), &mut frames);
    let words = |frame: &Frame| -> Vec<u32> {
        let bytes = frame.memory().read(0, frame.len());
        bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    let f = f32::to_bits;
    let [a, b, c, d] = [1.0, 2.0, 3.0, 4.0].map(f);
    let first = words(&frames[0]);
    assert_eq!(first[..10], [1, 2, 0, 0, 8, f(0.5), 1, f(2.5), 0, 0]);
    // Up to the next multiple of 16 it is of any value.
    assert_eq!(first[12..], [a, b, c, d]);
    let second = words(&frames[1]);
    let entries = [6, f(1.5), 0, 0, 0, 0, 6, f(3.5), 7, f(4.5), 6, f(5.5)];
    assert_eq!(second[..4], [2, 4, 0, 0]);
    assert_eq!(second[4..16], entries);
    assert_eq!(second[16..20], [a, b, c, d]);
    assert_eq!(second[20..], [5.0, 6.0, 7.0, 8.0].map(f));
}

#[test]
fn a_frame_that_lies_does_no_harm() {
    for gpu in gpus() {
        for layout in layouts(&gpu, 24, 2) {
            let capacities = [FrameCapacity { rows: 3, assignments: 4 }; 2];
            let mut frames = [Frame::new(&gpu), Frame::new(&gpu)];
            for frame in &mut frames {
                frame.resize(layout.dispatch_bytes(capacities[0]));
            }
            // Six assignments where four fit, three to slots that are not here; then rows beyond the room.
            let words = [1 << 30, u32::MAX, 9, 9, 1, 0, 0, 0, 900, 0, u32::MAX, 0, 2, 0, 1, 0];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            frames[0].memory_mut().write(0, &bytes);
            let words = [3, 0, 0, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0];
            let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
            frames[1].memory_mut().write(0, &bytes);
            let mut received = Received::new(&gpu);
            unpack_dispatch(&gpu, &layout, (&frames, &capacities), 2, &mut received);
            assert_eq!(received.offsets().read(0, 3), [0, 2, 7]);
            let y = Tensor::upload(&gpu, gpu.act(), &noise(1, 8 * 24), 24);
            let mut outbound = [Frame::new(&gpu), Frame::new(&gpu)];
            pack_combine(&gpu, &layout, &y, (&received, &capacities), &mut outbound);
            assert!(gpu.fault().is_none(), "{:?}", gpu.fault());
        }
    }
}
