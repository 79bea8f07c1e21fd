//! Placements, replicas, and exchanges that go wrong.

use super::*;

/// What happens to a frame.
type Spoil = fn(&mut Vec<u8>);

/// A collective that spoils what rank 0 receives from itself in one phase.
#[derive(Debug)]
struct Spoiler {
    inner: Local,
    layer: u32,
    direction: Direction,
    spoil: Spoil,
}

impl AllToAll for Spoiler {
    type Buffer = Vec<u8>;

    fn rank(&self) -> EpRank {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn epoch(&self) -> GroupEpoch {
        self.inner.epoch()
    }

    fn exchange(
        &mut self,
        phase: Phase,
        outbound: &[Vec<u8>],
        inbound: &mut [Vec<u8>],
    ) -> Result<(), collective::Error> {
        self.inner.exchange(phase, outbound, inbound)?;
        if (phase.layer, phase.direction) == (self.layer, self.direction) {
            (self.spoil)(&mut inbound[0]);
        }
        Ok(())
    }

    fn abort_handle(&self) -> Box<dyn AbortHandle> {
        self.inner.abort_handle()
    }
}

#[test]
fn a_malformed_frame_names_its_sender_and_the_step_is_undone() {
    let good = |model: &mut RankModel, step, batch: &StepBatch| {
        model.step_with_logits(StepId(step), batch, &mut mesh(1).remove(0)).unwrap().1
    };
    let begin = batch(vec![prefill(1, 0, &prompt(5, 50), Some(greedy()))]);
    let decode = batch(vec![decode(1, 50)]);
    let mut undisturbed = load(Numerics::Exact, 0, 1);
    good(&mut undisturbed, 1, &begin);
    let expected = good(&mut undisturbed, 2, &decode);
    let spoils: [(Direction, Spoil); 4] = [
        (Direction::Dispatch, |frame| frame.truncate(frame.len() - 1)),
        (Direction::Dispatch, |frame| frame[12] = 99),
        (Direction::Combine, Vec::clear),
        (Direction::Combine, |frame| frame.push(0)),
    ];
    for (direction, spoil) in spoils {
        let mut model = load(Numerics::Exact, 0, 1);
        good(&mut model, 1, &begin);
        let mut spoiler = Spoiler { inner: mesh(1).remove(0), layer: 2, direction, spoil };
        let error = model.step(StepId(2), &decode, &mut spoiler).unwrap_err();
        let Error::Collective {
            source: collective::Error::Malformed { culprit, phase, .. }, ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!((culprit, phase.layer, phase.direction), (EpRank(0), 2, direction));
        assert_eq!(good(&mut model, 2, &decode), expected, "after {direction:?}");
    }
}

#[test]
fn replicas_and_shuffled_placements_change_no_bit() {
    let checkpoint = checkpoint();
    let ids = prompt(6, 40);
    let run = |placement: Placement| {
        let ranks = mesh(placement.world_size());
        let logits: Vec<Vec<f32>> = thread::scope(|scope| {
            let (checkpoint, placement, ids) = (&checkpoint, &placement, &ids);
            let threads: Vec<_> = (0..)
                .zip(ranks)
                .map(|(rank, mut local)| {
                    scope.spawn(move || {
                        let mut model = load(Numerics::Official, 0, 1);
                        model.place(checkpoint, EpRank(rank), placement, &mut |_| {}).unwrap();
                        let mine = vec![prefill(0, 0, ids, None)];
                        let batch = batch(if rank == 1 { mine } else { Vec::new() });
                        model.step_with_logits(StepId(1), &batch, &mut local).unwrap().1
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(logits[0].is_empty());
        logits[1].clone()
    };
    let experts = |ids: &[i32]| {
        let slots = ids.iter().map(|&id| u32::try_from(id).ok());
        slots.map(|id| id.map(switchyard_moe::ids::LogicalExpertId)).collect::<Vec<_>>()
    };
    let shuffled = (6, experts(&[7, 1, 5, 3, -1, 0, 2, 4, 6, 7, 0, -1]));
    let shuffled = Placement::new(vec![shuffled; 4], 8, 2).unwrap();
    let plain = run(Placement::contiguous(4, 8, 2));
    assert_eq!(plain.len(), 40 * 256);
    assert_eq!(run(shuffled), plain);
}

#[test]
fn a_placement_of_another_model_is_refused() {
    let mut model = load(Numerics::Exact, 0, 1);
    let checkpoint = checkpoint();
    for (rank, placement, part) in [
        (0, Placement::contiguous(3, 8, 1), "it has 3 layers, the model 4"),
        (0, Placement::contiguous(4, 6, 1), "layer 0 places 6 experts, the model has 8"),
        (2, Placement::contiguous(4, 8, 2), "rank 2 of 2"),
    ] {
        let error = model.place(&checkpoint, EpRank(rank), &placement, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn progress_ends_at_the_bytes_that_were_announced() {
    let checkpoint = checkpoint();
    for world_size in [1, 3] {
        let options = LoadOptions {
            rank: EpRank(0),
            placement: Placement::contiguous(4, 8, world_size),
            numerics: Numerics::Official,
            limits: LIMITS,
            num_threads: NonZeroUsize::MIN,
            exchange_deadline: Duration::from_secs(60),
        };
        let mut heard = Vec::new();
        RankModel::load(&checkpoint, &options, &mut |progress| heard.push(progress)).unwrap();
        assert!(heard.is_sorted_by_key(|progress| progress.bytes_done));
        let last = heard.last().unwrap();
        assert_eq!(last.bytes_done, last.bytes_total);
    }
}

#[test]
fn a_row_counts_once_for_each_of_its_experts_on_the_rank_that_computes_it() {
    let tokens = prompt(3, 40);
    let ranks = mesh(2).into_iter().zip(0..).map(|(mut local, rank)| {
        // Only rank 0 has tokens; the experts of both compute them.
        let chunks = if rank == 0 { vec![prefill(1, 0, &tokens, Some(greedy()))] } else { vec![] };
        let batch = batch(chunks);
        thread::spawn(move || {
            let mut model = load(Numerics::Exact, rank, 2);
            let result = model.step(StepId(1), &batch, &mut local).unwrap();
            (result.expert_rows, model.config().clone())
        })
    });
    let ranks: Vec<_> =
        ranks.collect::<Vec<_>>().into_iter().map(|it| it.join().unwrap()).collect();
    let config = &ranks[0].1;
    for layer in 0..config.num_hidden_layers {
        let rows = [ranks[0].0[layer], ranks[1].0[layer]];
        assert_eq!(
            rows[0] + rows[1],
            (tokens.len() * config.num_experts_per_tok) as u32,
            "{layer}"
        );
        assert!(rows[0] > 0 && rows[1] > 0, "layer {layer}: {rows:?}");
    }
}
