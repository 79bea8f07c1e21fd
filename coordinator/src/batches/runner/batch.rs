//! One batch, from where it is to its end.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use metrics::counter;
use tracing::Instrument as _;

use super::retry::until_answered;
use super::{LEASE_SECONDS, RENEW_EVERY, Runner};
use crate::batches::input::{self, Checked};
use crate::batches::journal::{Line, Outcome};
use crate::batches::perform::{Answered, Call};
use crate::batches::record::{BatchId, BatchRecord, Status};
use crate::batches::{Error, output};
use crate::chat::usage::Chain;
use crate::files;
use crate::metric_definitions as names;

/// How often it is asked whether a batch's time is over.
const EXPIRY_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Why a batch is put down before its end.
enum Interruption {
    /// Another coordinator has it.
    Lost,
    /// Its client wants its end.
    Cancelling,
}

// === impl Runner ===

impl Runner {
    pub(super) async fn run_batch(&self, id: BatchId) {
        if let Err(error) = self.try_run_batch(&id).await {
            // It is taken up again when the lease ends, which is soon enough and not too soon.
            tracing::error!(batch.id = %id, error = %Chain(&error), "a batch is interrupted");
        }
    }

    pub(in crate::batches) async fn try_run_batch(&self, id: &BatchId) -> Result<(), Error> {
        let mut knows_cancelling = false;
        loop {
            tokio::select! {
                ended = self.drive(id) => return ended,
                interruption = self.keep(id, knows_cancelling) => match interruption {
                    Interruption::Lost => {
                        tracing::warn!(batch.id = %id, "another coordinator runs the batch");
                        return Ok(());
                    }
                    Interruption::Cancelling => knows_cancelling = true,
                },
            }
        }
    }

    /// Says again and again that the batch is ours, until it is not, or is to be cancelled.
    async fn keep(&self, id: &BatchId, knows_cancelling: bool) -> Interruption {
        let mut changes = self.batches.changes.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY) => {}
                _ = changes.changed() => {}
            }
            match self.journal.renew(id, LEASE_SECONDS).await {
                Ok(None) => return Interruption::Lost,
                Ok(Some(Status::Cancelling)) if !knows_cancelling => {
                    return Interruption::Cancelling;
                }
                Ok(Some(_)) => {}
                // Whoever takes the batch meanwhile wins: commits name their owner.
                Err(error) => {
                    tracing::warn!(batch.id = %id, error = %Chain(&error), "cannot keep a batch");
                }
            }
        }
    }

    async fn drive(&self, id: &BatchId) -> Result<(), Error> {
        while let Some(batch) = self.journal.load(id).await? {
            match batch.status {
                Status::Validating => self.validate(&batch).await?,
                Status::InProgress => self.answer(&batch).await?,
                Status::Finalizing | Status::Cancelling => {
                    let status =
                        output::finalize(&self.journal, &self.batches.files, &batch).await?;
                    if let Some(status) = status {
                        tracing::info!(batch.id = %id, status = status.as_str(), "a batch is over");
                        self.journal.forget_lines(id).await?;
                    }
                    return Ok(());
                }
                Status::Failed | Status::Completed | Status::Expired | Status::Cancelled => {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn validate(&self, batch: &BatchRecord) -> Result<(), Error> {
        let lines_max = self.batches.limits.lines_max;
        match input::check(&self.batches.files, batch, lines_max).await? {
            Checked::Lines(lines) => {
                tracing::info!(batch.id = %batch.id, num_lines = lines.len(), "a batch begins");
                self.journal.begin(&batch.id, &lines, LEASE_SECONDS).await
            }
            Checked::Invalid(errors) => {
                tracing::info!(batch.id = %batch.id, num_errors = errors.len(), "a batch is refused");
                self.journal.refuse(&batch.id, &errors).await
            }
        }
    }

    /// Has all requests answered that have no answer yet, or as many as there is time for.
    async fn answer(&self, batch: &BatchRecord) -> Result<(), Error> {
        let concurrency = self.batches.limits.concurrency;
        let mut running = FuturesUnordered::new();
        let mut lines = Vec::new().into_iter();
        let (mut after, mut is_last_page) = (0, false);
        let mut check = tokio::time::interval(EXPIRY_CHECK_EVERY);
        loop {
            if self.batches.clock.unix_seconds() >= batch.times.expires {
                break;
            }
            while running.len() < concurrency {
                if lines.len() == 0 && !is_last_page {
                    lines = self.journal.open_lines(&batch.id, after).await?.into_iter();
                    is_last_page = lines.len() == 0;
                }
                let Some(line) = lines.next() else { break };
                after = line.number;
                running.push(self.answer_line(batch, line));
            }
            tokio::select! {
                ended = running.next() => match ended {
                    Some(ended) => ended?,
                    None => break,
                },
                _ = check.tick() => {}
            }
        }
        drop(running);
        self.journal.close(&batch.id).await
    }

    /// Has one request answered, however often it has to be tried, and records the answer.
    async fn answer_line(&self, batch: &BatchRecord, line: Line) -> Result<(), Error> {
        let span = tracing::error_span!(
            "batch.line",
            batch.id = %batch.id,
            request.id = output::request_id(&batch.id, line.number),
            key.id = batch.owner.get(),
        );
        let answered = self.answered(batch, &line).instrument(span).await?;
        let result = output::result(&batch.id, &line, &answered);
        if self.journal.record(&batch.id, &line, &answered, &result).await? {
            let outcome = if answered.is_success() { Outcome::Completed } else { Outcome::Failed };
            counter!(names::BATCH_LINES_TOTAL, names::OUTCOME => outcome.as_str()).increment(1);
        }
        Ok(())
    }

    async fn answered(&self, batch: &BatchRecord, line: &Line) -> Result<Answered, Error> {
        until_answered(|| async {
            // Not held during pauses: others may have another model, and luck.
            let _permit = self.permits.acquire().await;
            let range = line.begins_at..line.begins_at + line.length;
            let text = self.batches.files.read_range(&batch.input, range).await?;
            let Some(body) = input::body(&text) else { return Err(changed(batch)) };
            drop(text);
            let call = Call { owner: batch.owner, endpoint: batch.endpoint, body };
            Ok(self.perform.perform(call).await)
        })
        .await
    }
}

/// What was checked is not there any more.
fn changed(batch: &BatchRecord) -> Error {
    files::Error::NotFound { id: batch.input.clone() }.into()
}
