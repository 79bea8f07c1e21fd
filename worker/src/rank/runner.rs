//! What the rank's thread computes with: the model in memory, or a stand-in for it in tests.

use std::fmt;
use std::sync::Arc;

use switchyard_moe::ids::{EpRank, StepId};
use switchyard_moe::placement::Placement;

use crate::backend::device::DeviceModel;
use crate::collective::AllToAll;
use crate::kv_cache::CacheLimits;
use crate::metric_definitions as metric;
use crate::model::{self, LoadOptions, Progress};
use crate::options::Options;
use crate::step::{StepBatch, StepResult};
use crate::weights::Checkpoint;

/// What a rank is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its number in the group.
    pub rank: EpRank,
    /// Where every expert lives.
    pub placement: Placement,
    /// Sizes of its state.
    pub limits: CacheLimits,
}

/// Computes the steps of one rank.
pub trait StepRunner: fmt::Debug + Send + 'static {
    /// Makes the rank what `plan` says, keeping what it already holds. `progress` hears of bytes.
    ///
    /// # Errors
    /// When the plan does not fit the model, or the checkpoint is refused.
    fn load(&mut self, plan: &Plan, progress: &mut dyn FnMut(Progress))
    -> Result<(), model::Error>;

    /// Drops all sequences.
    fn clear(&mut self);

    /// Sequences with state.
    fn num_sequences(&self) -> usize;

    /// Runs one step. Every rank of the group runs the same steps, with an empty batch if it has no work.
    ///
    /// # Errors
    /// When the batch is impossible or an exchange fails; the rank then leaves the group.
    fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<StepResult, model::Error>;
}

/// The [`StepRunner`] of a worker process: a model from a checkpoint, on the worker's device.
#[derive(Debug)]
pub struct CheckpointRunner {
    checkpoint: Arc<Checkpoint>,
    options: Options,
    loaded: Option<(Plan, DeviceModel)>,
}

// === impl CheckpointRunner ===

impl CheckpointRunner {
    /// A rank that has loaded nothing yet.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>, options: Options) -> Self {
        Self { checkpoint, options, loaded: None }
    }

    fn load_anew(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<DeviceModel, model::Error> {
        // What is to be replaced is freed first: a worker need not hold two models.
        self.loaded = None;
        let options = LoadOptions {
            rank: plan.rank,
            placement: plan.placement.clone(),
            numerics: self.options.numerics,
            limits: plan.limits,
            num_threads: self.options.num_threads,
            exchange_deadline: self.options.exchange_deadline,
        };
        DeviceModel::load(&self.options.device, &*self.checkpoint, &options, progress)
    }
}

impl StepRunner for CheckpointRunner {
    fn load(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), model::Error> {
        let model = match self.loaded.take() {
            Some((held, model)) if held == *plan => model,
            Some((held, mut model)) if held.limits == plan.limits => {
                let placed = model.place(&*self.checkpoint, plan.rank, &plan.placement, progress);
                if let Err(error) = placed {
                    // A placement that does not fit leaves the model as it was; anything else leaves a part of it.
                    if matches!(error, model::Error::Placement(_)) {
                        self.loaded = Some((held, model));
                    }
                    return Err(error);
                }
                model
            }
            Some(_) | None => self.load_anew(plan, progress)?,
        };
        metric::loaded(self.checkpoint.num_bytes_for(plan.rank, &plan.placement));
        self.loaded = Some((plan.clone(), model));
        Ok(())
    }

    fn clear(&mut self) {
        if let Some((_, model)) = &mut self.loaded {
            model.clear();
        }
    }

    fn num_sequences(&self) -> usize {
        self.loaded.as_ref().map_or(0, |(_, model)| model.num_sequences())
    }

    fn step(
        &mut self,
        step: StepId,
        batch: &StepBatch,
        all_to_all: &mut dyn AllToAll<Buffer = Vec<u8>>,
    ) -> Result<StepResult, model::Error> {
        match &mut self.loaded {
            Some((_, model)) => model.step(step, batch, all_to_all),
            None => Err(model::Error::Placement("nothing is loaded".to_owned())),
        }
    }
}
