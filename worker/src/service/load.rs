//! The stream of a load's progress. The load itself goes on when nobody reads it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use switchyard_proto::worker::LoadProgress;
use switchyard_proto::worker::load_progress::Phase;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::info;

use super::{Inner, status};
use crate::model::Progress;
use crate::rank::{self, Loading, Plan};

/// Time between two messages.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// Messages that the coordinator has not read yet.
const REPORTS_MAX: usize = 4;

type Reports = mpsc::Sender<Result<LoadProgress, Status>>;

/// Leaves the group and starts to load `plan`.
pub(super) async fn begin(
    inner: Arc<Inner>,
    plan: Plan,
) -> Result<BoxStream<'static, Result<LoadProgress, Status>>, Status> {
    let number = {
        let mut state = inner.lock();
        if state.is_stopping {
            return Err(Status::unavailable("the worker is stopping"));
        }
        state.loaded = None;
        state.loads += 1;
        state.loads
    };
    inner.leave("the worker was told to load").await?;
    let plan = Arc::new(plan);
    let loading = inner.rank.load(Arc::clone(&plan)).await;
    let loading = loading.map_err(|error| status::rank(&error))?;
    let (reports, messages) = mpsc::channel(REPORTS_MAX);
    tokio::spawn(report(inner, plan, number, loading, reports));
    Ok(ReceiverStream::new(messages).boxed())
}

async fn report(
    inner: Arc<Inner>,
    plan: Arc<Plan>,
    number: u64,
    mut loading: Loading,
    reports: Reports,
) {
    let began = Instant::now();
    let mut ticks = interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut loading.done => break result,
            _ = ticks.tick() => {
                let progress = *loading.progress.borrow_and_update();
                let phase = if progress.is_some() { Phase::Weights } else { Phase::Mapping };
                // A reader who lags does not need every report.
                let _ = reports.try_send(Ok(message(phase, progress, began)));
            }
        }
    };
    let last = match result {
        Ok(Ok(())) => {
            let progress = *loading.progress.borrow_and_update();
            {
                let mut state = inner.lock();
                if state.loads == number {
                    state.loaded = Some(Arc::clone(&plan));
                }
            }
            info!(rank = %plan.rank, seconds = began.elapsed().as_secs_f64(), "loaded");
            Ok(message(Phase::Ready, progress, began))
        }
        Ok(Err(error)) => Err(status::load(plan.rank, &error)),
        Err(_) => Err(status::rank(&rank::Error::Stopped)),
    };
    // The last message waits for its place; if the reader is gone, nobody misses it.
    let _ = reports.send(last).await;
}

fn message(phase: Phase, progress: Option<Progress>, began: Instant) -> LoadProgress {
    let Progress { bytes_done, bytes_total } =
        progress.unwrap_or(Progress { bytes_done: 0, bytes_total: 0 });
    let bytes_done = if phase == Phase::Ready { bytes_total } else { bytes_done };
    let seconds = began.elapsed().as_secs_f64();
    LoadProgress {
        phase: phase.into(),
        bytes_done,
        bytes_total,
        gigabytes_per_second: if seconds > 0.0 { bytes_done as f64 / 1e9 / seconds } else { 0.0 },
    }
}
