//! The files that a batch leaves behind: a line for each request that was answered, and one for each that was not.

use bytes::Bytes;
use serde_json::{Value, json};

use super::Error;
use super::journal::{Ended, Journal, Line, Outcome};
use super::perform::Answered;
use super::record::{BatchId, BatchRecord, Status};
use crate::files::{FileId, FileRecord, Files, Purpose};

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Output,
    Error,
}

/// Writes the files of a batch, and ends it. Doing it again writes the same.
pub(super) async fn finalize(
    journal: &Journal,
    files: &Files,
    batch: &BatchRecord,
) -> Result<Option<Status>, Error> {
    let Some([output_id, error_id]) = journal.choose_files(&batch.id).await? else {
        return Ok(None);
    };
    let has_open = !journal.open_lines(&batch.id, 0).await?.is_empty();
    let status = match (batch.status == Status::Cancelling, has_open) {
        (true, _) => Status::Cancelled,
        (false, true) => Status::Expired,
        (false, false) => Status::Completed,
    };
    let completed = [Some(Outcome::Completed)];
    let output = write(journal, files, (batch, output_id, Kind::Output), &completed).await?;
    // Requests that were not answered in time are failures; those of a cancelled batch are not wanted.
    let outcomes = [Some(Outcome::Failed), None];
    let num_kinds = if status == Status::Expired { 2 } else { 1 };
    let place = (batch, error_id, Kind::Error);
    let error = write(journal, files, place, &outcomes[..num_kinds]).await?;
    let is_ended = journal.end(batch, status, [output, error]).await?;
    Ok(is_ended.then_some(status))
}

/// Writes the lines of requests with these outcomes. `None` when there are none: then there is no file.
async fn write(
    journal: &Journal,
    files: &Files,
    (batch, id, kind): (&BatchRecord, FileId, Kind),
    outcomes: &[Option<Outcome>],
) -> Result<Option<FileRecord>, Error> {
    let mut sink = None;
    let mut bytes = 0;
    for &outcome in outcomes {
        let mut after = 0;
        loop {
            let page = journal.ended_lines(&batch.id, outcome, after).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            let text: String = page.iter().map(|ended| text(&batch.id, ended) + "\n").collect();
            bytes += text.len() as u64;
            sink.get_or_insert_with(|| files.write(&id)).put(Bytes::from(text)).await?;
        }
    }
    let Some(sink) = sink else { return Ok(None) };
    sink.finish().await?;
    let created_at = batch.times.finalizing.or(batch.times.cancelling);
    Ok(Some(FileRecord {
        id,
        owner: batch.owner,
        purpose: Purpose::BatchOutput,
        filename: format!("{}_{}.jsonl", batch.id, kind.as_str()),
        bytes,
        created_at: created_at.unwrap_or(batch.times.created),
        expires_at: files.expiry(batch.output_expires_after),
    }))
}

/// A line of either file, without its end.
fn text(id: &BatchId, ended: &Ended) -> String {
    match &ended.result {
        Some(result) => result.clone(),
        None => {
            let error = json!({
                "code": "batch_expired",
                "message": "This request could not be executed before the completion window expired.",
            });
            line(id, ended.number, &ended.custom_id, Value::Null, error).to_string()
        }
    }
}

/// The line of a request with its answer, to be kept.
pub(super) fn result(id: &BatchId, of: &Line, answered: &Answered) -> String {
    let response = json!({
        "status_code": answered.status,
        "request_id": request_id(id, of.number),
        "body": answered.body,
    });
    line(id, of.number, &of.custom_id, response, Value::Null).to_string()
}

/// What a request is called in logs, and in its line.
pub(super) fn request_id(id: &BatchId, line: i64) -> String {
    format!("req-{}-{line}", id.unique())
}

fn line(id: &BatchId, number: i64, custom_id: &str, response: Value, error: Value) -> Value {
    json!({
        "id": format!("batch_req_{}_{number}", id.unique()),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    })
}

// === impl Kind ===

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}
