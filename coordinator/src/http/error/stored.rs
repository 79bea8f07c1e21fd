//! Errors of files and batches.

use axum::http::StatusCode;

use super::{Answer, RETRY_AFTER_DEFAULT};
use crate::{batches, files};

pub(super) fn file_answer(error: &files::Error) -> Answer {
    use files::Error as File;
    match error {
        File::NotFound { .. } => Answer::invalid(StatusCode::NOT_FOUND, "file_not_found"),
        File::InUse { .. } => Answer::invalid(StatusCode::BAD_REQUEST, "file_in_use"),
        File::TooMany { .. } => Answer::invalid(StatusCode::BAD_REQUEST, "too_many_files"),
        File::TooLarge { .. } => {
            Answer::invalid(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large")
                .param("file".to_owned())
        }
        File::Database { .. } | File::Contents { .. } => Answer::internal(),
    }
}

pub(super) fn batch_answer(error: &batches::Error) -> Answer {
    use batches::Error as Batch;
    match error {
        Batch::NotFound { .. } => Answer::invalid(StatusCode::NOT_FOUND, "batch_not_found"),
        Batch::NotInput { .. } => Answer::invalid(StatusCode::BAD_REQUEST, "invalid_value")
            .param("input_file_id".to_owned()),
        Batch::NotCancellable { .. } => {
            Answer::invalid(StatusCode::BAD_REQUEST, "batch_not_cancellable")
        }
        Batch::TooMany { .. } => {
            Answer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded")
                .retry_after(RETRY_AFTER_DEFAULT)
        }
        Batch::File(error) => file_answer(error),
        Batch::Database { .. } => Answer::internal(),
    }
}
