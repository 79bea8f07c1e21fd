use std::time::Duration;

use super::*;
use crate::collective::local::{self, Local};
use crate::collective::{Direction, Phase};
use crate::kv_cache::CacheLimits;
use switchyard_moe::placement::Placement;

/// Does one exchange per step; a step with chunks panics.
#[derive(Debug, Default)]
struct Echo {
    loaded: Vec<EpRank>,
    num_sequences: usize,
}

impl StepRunner for Echo {
    fn load(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), model::Error> {
        if plan.rank.0 > 1 {
            return Err(model::Error::Placement(format!("no rank {}", plan.rank)));
        }
        self.loaded.push(plan.rank);
        progress(Progress { bytes_done: 5, bytes_total: 10 });
        Ok(())
    }

    fn clear(&mut self) {
        self.num_sequences = 0;
    }

    fn num_sequences(&self) -> usize {
        self.num_sequences
    }

    fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<StepResult, model::Error> {
        assert!(batch.chunks.is_empty(), "the test wants a panic");
        let phase = Phase { step, layer: 0, direction: Direction::Dispatch };
        let buffers = vec![Vec::new(); all_to_all.world_size()];
        all_to_all
            .exchange(phase, &buffers, &mut buffers.clone())
            .map_err(|source| model::Error::Collective { step, source })?;
        self.num_sequences += 1;
        Ok(StepResult::default())
    }
}

fn plan(rank: u32) -> Arc<Plan> {
    let limits =
        CacheLimits { num_blocks: 1, max_num_seqs: 1, max_num_batched_tokens: 1, max_model_len: 1 };
    Arc::new(Plan { rank: EpRank(rank), placement: Placement::contiguous(1, 2, 2), limits })
}

fn pair(epoch: u64) -> (Local, Local) {
    let mut mesh = local::mesh(2, GroupEpoch(epoch), Duration::from_secs(60)).into_iter();
    (mesh.next().unwrap(), mesh.next().unwrap())
}

fn of(epoch: u64, step: u64, batch: StepBatch) -> Step {
    Step { epoch: GroupEpoch(epoch), step: StepId(step), batch, traces: Vec::new() }
}

async fn step(rank: &Handle, epoch: u64, step: u64) -> Result<StepResult, Error> {
    rank.step(of(epoch, step, StepBatch::default()))
        .await
        .unwrap()
        .await
        .unwrap_or(Err(Error::Stopped))
}

#[tokio::test]
async fn steps_run_in_the_group_of_their_epoch_only() {
    let (first, _first_stopped) = spawn(Echo::default()).unwrap();
    let (second, _second_stopped) = spawn(Echo::default()).unwrap();
    let error = step(&first, 1, 1).await.unwrap_err();
    assert_eq!(error.to_string(), "step 1 belongs to epoch 1, this rank is in no group");

    let (left, right) = pair(1);
    first.join(Box::new(left)).await.unwrap();
    second.join(Box::new(right)).await.unwrap();
    let (a, b) = tokio::join!(step(&first, 1, 1), step(&second, 1, 1));
    a.and(b).unwrap();
    assert_eq!(first.num_sequences(), 1);

    let error = step(&first, 2, 1).await.unwrap_err();
    assert_eq!(error.to_string(), "step 1 belongs to epoch 2, this rank is in epoch 1");
    // A stale leave does nothing; the right one closes the connections and drops the sequences.
    first.leave(GroupEpoch(7)).await.unwrap();
    assert_eq!(first.num_sequences(), 1);
    first.leave(GroupEpoch(1)).await.unwrap();
    assert_eq!(first.num_sequences(), 0);
    let error = step(&second, 1, 2).await.unwrap_err();
    assert_eq!(
        crate::chain(&error),
        "rank 1 could not compute step 2: step 2 failed: rank 0 stopped before step 2 layer 0 \
         dispatch; rank 1 waited for it"
    );
    // Having failed, it has left, so that its peers learn of it.
    let error = step(&second, 1, 3).await.unwrap_err();
    assert!(matches!(error, Error::NotInGroup { ours: None, .. }), "{error}");
}

#[tokio::test]
async fn a_load_reports_progress_and_leaves_the_group() {
    let (rank, _stopped) = spawn(Echo::default()).unwrap();
    let (ours, mut theirs) = pair(1);
    rank.join(Box::new(ours)).await.unwrap();
    let loading = rank.load(plan(1)).await.unwrap();
    loading.done.await.unwrap().unwrap();
    let progress = *loading.progress.borrow();
    assert_eq!(progress, Some(Progress { bytes_done: 5, bytes_total: 10 }));
    let phase = Phase { step: StepId(1), layer: 0, direction: Direction::Dispatch };
    let buffers = [Vec::new(), Vec::new()];
    let error = theirs.exchange(phase, &buffers, &mut buffers.clone()).unwrap_err();
    assert!(matches!(error, collective::Error::PeerLost { .. }), "{error}");

    let loading = rank.load(plan(2)).await.unwrap();
    let error = loading.done.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the placement does not fit: no rank 2");
}

#[tokio::test]
async fn a_panic_is_noticed() {
    let (rank, mut stopped) = spawn(Echo::default()).unwrap();
    let (ours, _theirs) = pair(1);
    rank.join(Box::new(ours)).await.unwrap();
    let chunk = crate::step::SequenceChunk {
        sequence: switchyard_moe::ids::SequenceId(1),
        first_position: 0,
        tokens: crate::step::ChunkTokens::LastSample,
        new_blocks: Vec::new(),
        start: None,
        samples: false,
    };
    let batch = StepBatch { chunks: vec![chunk], released: Vec::new() };
    let pending = rank.step(of(1, 1, batch)).await.unwrap();
    assert!(pending.await.is_err());
    stopped.wait().await;
    assert!(matches!(rank.leave(GroupEpoch(1)).await, Err(Error::Stopped)));
}
