//! The requests in a file, checked as far as that needs no model.

use std::collections::BTreeSet;

use bytes::{Buf as _, BytesMut};
use futures::StreamExt as _;
use serde_json::{Map, Value};

use super::Error;
use super::journal::Line;
use super::record::{BatchRecord, Endpoint, LineError};
use crate::files::{self, Files};

/// Longest `custom_id`, in bytes.
const CUSTOM_ID_LEN_MAX: usize = 512;
/// Longest request with what is around it, in bytes.
const LINE_LEN_MAX: usize = 8 << 20;
/// Mistakes that are listed; what comes behind them is not looked at.
const ERRORS_MAX: usize = 100;

/// The requests of a batch, or what is wrong with them.
#[derive(Debug)]
pub(super) enum Checked {
    Lines(Vec<Line>),
    Invalid(Vec<LineError>),
}

/// A request, taken apart.
struct Request {
    custom_id: String,
    body: Map<String, Value>,
}

/// Reads a file line by line.
struct Checker {
    endpoint: Endpoint,
    lines_max: usize,
    lines: Vec<Line>,
    custom_ids: BTreeSet<String>,
    errors: Vec<LineError>,
    /// Of the line being read.
    number: u64,
    begins_at: u64,
}

/// Reads and checks the input of a batch. No more than one line is in memory.
pub(super) async fn check(
    files: &Files,
    batch: &BatchRecord,
    lines_max: usize,
) -> Result<Checked, Error> {
    let mut pieces = match files.read(&batch.input).await {
        Err(files::Error::NotFound { .. }) => {
            return Ok(Checked::Invalid(vec![of_file("file_not_found", "the input file is gone")]));
        }
        pieces => pieces?,
    };
    let mut checker = Checker::new(batch.endpoint, lines_max);
    let mut rest = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        // What was there before holds no end of a line.
        let mut searched = rest.len();
        rest.extend_from_slice(&piece?);
        while let Some(end) = rest[searched..].iter().position(|byte| *byte == b'\n') {
            checker.take(&rest[..searched + end], 1);
            rest.advance(searched + end + 1);
            searched = 0;
            if checker.is_full() {
                return Ok(checker.finish());
            }
        }
        if rest.len() > LINE_LEN_MAX {
            checker.take(&rest, 0);
            return Ok(checker.finish());
        }
        // A line may be large; others want the thread, too.
        tokio::task::yield_now().await;
    }
    checker.take(&rest, 0);
    Ok(checker.finish())
}

/// The body of a request that was checked before.
pub(super) fn body(line: &[u8]) -> Option<Map<String, Value>> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else { return None };
    match fields.shift_remove("body") {
        Some(Value::Object(body)) => Some(body),
        Some(_) | None => None,
    }
}

/// Takes a line apart; else what is wrong with it: code, field, message.
fn parse(line: &[u8], endpoint: Endpoint) -> Result<Request, (&'static str, &'static str, String)> {
    if line.len() > LINE_LEN_MAX {
        return Err(("line_too_long", "", format!("the line has more than {LINE_LEN_MAX} bytes")));
    }
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| ("invalid_json_line", "", format!("the line is not JSON: {error}")))?;
    let Value::Object(mut fields) = value else {
        return Err(("invalid_json_line", "", "the line must be a JSON object".to_owned()));
    };
    let custom_id = text(&mut fields, "custom_id")?;
    if custom_id.is_empty() || custom_id.len() > CUSTOM_ID_LEN_MAX {
        let message = format!("`custom_id` must have 1 to {CUSTOM_ID_LEN_MAX} bytes");
        return Err(("invalid_value", "custom_id", message));
    }
    let method = text(&mut fields, "method")?;
    if method != "POST" {
        return Err((
            "invalid_method",
            "method",
            format!("`method` is {method:?}, but must be POST"),
        ));
    }
    let url = text(&mut fields, "url")?;
    if url != endpoint.path() {
        let path = endpoint.path();
        let message = format!("`url` is {url:?}, but the batch's endpoint is {path:?}");
        return Err(("mismatched_url", "url", message));
    }
    let body = match fields.shift_remove("body") {
        Some(Value::Object(body)) => body,
        Some(_) => return Err(("invalid_type", "body", "`body` must be an object".to_owned())),
        None => return Err(missing("body")),
    };
    if let Some(name) = fields.keys().next() {
        let message = format!("`{name}` is no field of a batch's request");
        return Err(("unknown_parameter", "", message));
    }
    Ok(Request { custom_id, body })
}

fn text(
    fields: &mut Map<String, Value>,
    name: &'static str,
) -> Result<String, (&'static str, &'static str, String)> {
    match fields.shift_remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(("invalid_type", name, format!("`{name}` must be a string"))),
        None => Err(missing(name)),
    }
}

fn missing(name: &'static str) -> (&'static str, &'static str, String) {
    ("missing_required_parameter", name, format!("`{name}` is required"))
}

fn of_file(code: &str, message: &str) -> LineError {
    LineError { code: code.to_owned(), message: message.to_owned(), param: None, line: None }
}

// === impl Checker ===

impl Checker {
    fn new(endpoint: Endpoint, lines_max: usize) -> Self {
        Self {
            endpoint,
            lines_max,
            lines: Vec::new(),
            custom_ids: BTreeSet::new(),
            errors: Vec::new(),
            number: 1,
            begins_at: 0,
        }
    }

    /// Checks the next line, which has `ending` more bytes that are not passed.
    fn take(&mut self, line: &[u8], ending: u64) {
        let number = self.number;
        self.number += 1;
        self.begins_at += line.len() as u64 + ending;
        let line = line.strip_prefix(b"\xEF\xBB\xBF").filter(|_| number == 1).unwrap_or(line);
        if line.trim_ascii().is_empty() {
            return;
        }
        let begins_at = self.begins_at - ending - line.len() as u64;
        let request = match parse(line, self.endpoint) {
            Ok(request) => request,
            Err((code, param, message)) => return self.refuse(number, code, param, message),
        };
        if request.body.get("stream").is_some_and(|stream| stream == true) {
            let message = "`body.stream` must not be set: a batch's answers are whole".to_owned();
            return self.refuse(number, "unsupported_parameter", "body.stream", message);
        }
        if !self.custom_ids.insert(request.custom_id.clone()) {
            let message = format!("`custom_id` {:?} was used before", request.custom_id);
            return self.refuse(number, "duplicate_custom_id", "custom_id", message);
        }
        if self.lines.len() == self.lines_max {
            let message = format!("the file has more than {} requests", self.lines_max);
            return self.refuse(number, "too_many_requests", "", message);
        }
        self.lines.push(Line {
            number: i64::try_from(number).unwrap_or(i64::MAX),
            custom_id: request.custom_id,
            begins_at,
            length: line.len() as u64,
        });
    }

    fn refuse(&mut self, line: u64, code: &str, param: &str, message: String) {
        let param = (!param.is_empty()).then(|| param.to_owned());
        self.errors.push(LineError { code: code.to_owned(), message, param, line: Some(line) });
    }

    /// Whether it is of no use to read on.
    fn is_full(&self) -> bool {
        let too_many = self.errors.iter().any(|error| error.code == "too_many_requests");
        self.errors.len() >= ERRORS_MAX || too_many
    }

    fn finish(self) -> Checked {
        if !self.errors.is_empty() {
            return Checked::Invalid(self.errors);
        }
        if self.lines.is_empty() {
            return Checked::Invalid(vec![of_file("empty_file", "the file has no requests")]);
        }
        Checked::Lines(self.lines)
    }
}
