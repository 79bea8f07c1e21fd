//! `POST /v1/files`: a form with a file, which goes to the store as it comes.

use std::time::Duration;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::{Extension, Json};
use bytes::Bytes;

use super::FileObject;
use crate::auth::{Account, KeyId};
use crate::chat;
use crate::chat::invalid::{Invalid, InvalidCode};
use crate::files::{self, Files, NewFile, Purpose, Upload};
use crate::http::{Context, Error, body};

/// Longest value of a field that is no file, in bytes.
const TEXT_LEN_MAX: usize = 4096;
/// Longest name of a file, in bytes.
const FILENAME_LEN_MAX: usize = 255;
/// How much of an oversized file is read and thrown away, in bytes, so that its client sees our answer, not a reset.
const DISCARD_MAX: usize = 64 << 20;
/// A mark of Unicode that some editors put first.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A form, as far as it has come.
#[derive(Default)]
struct Form {
    purpose: Option<Purpose>,
    anchor: Option<String>,
    seconds: Option<i64>,
    file: Option<Received>,
}

/// A file that is in the store, and not yet a client's.
struct Received {
    upload: Upload,
    filename: String,
}

/// A form that is being read.
struct Reader<'a> {
    files: &'a Files,
    owner: KeyId,
    /// Longest pause of the client.
    patience: Duration,
}

/// Keeps a file.
pub(in crate::http) async fn create(
    State(context): State<Context>,
    Extension(account): Extension<Account>,
    request: Request,
) -> Result<Json<FileObject>, Error> {
    check_content_type(&request)?;
    body::check_content_encoding(request.headers())?;
    let form = Multipart::from_request(request, &()).await.map_err(|error| {
        let what = format!("cannot be read as a form: {}", error.body_text());
        chat::Error::from(Invalid::new(InvalidCode::Value, "body", &what))
    })?;
    let files = context.batches.files();
    let patience = context.limits.body_read_timeout;
    let reader = Reader { files, owner: account.key_id(), patience };
    let after = files.limits().upload_timeout;
    let mut received = Form::default();
    let read = tokio::time::timeout(after, Box::pin(reader.read(form, &mut received))).await;
    let read = read.unwrap_or(Err(Error::BodyTimeout { after }));
    let new = read.and_then(|()| Ok(received.check().map_err(chat::Error::from)?));
    match (new, received.file) {
        (Ok(new), Some(file)) => Ok(Json(file.upload.finish(new).await?.into())),
        (Ok(_), None) => Err(missing("file").into()),
        (Err(error), file) => {
            if let Some(file) = file {
                file.upload.abort().await;
            }
            Err(error)
        }
    }
}

fn check_content_type(request: &Request) -> Result<(), Error> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |it| it.as_bytes());
    let content_type = String::from_utf8_lossy(content_type);
    if content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data") {
        return Ok(());
    }
    let wanted = "multipart/form-data";
    Err(Error::ContentType { content_type: content_type.into_owned(), wanted })
}

fn missing(param: &str) -> chat::Error {
    Invalid::new(InvalidCode::Missing, param, "is required").into()
}

fn wrong(param: &str, what: &str) -> Error {
    chat::Error::from(Invalid::new(InvalidCode::Value, param, what)).into()
}

// === impl Reader ===

impl Reader<'_> {
    async fn read(&self, mut form: Multipart, received: &mut Form) -> Result<(), Error> {
        while let Some(field) = self.in_time(form.next_field()).await? {
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "file" => self.receive(field, received).await?,
                "purpose" => {
                    let value = self.text(field, &name).await?;
                    received.purpose = Some(super::purpose(&value).map_err(chat::Error::from)?);
                }
                "expires_after[anchor]" => received.anchor = Some(self.text(field, &name).await?),
                "expires_after[seconds]" => {
                    let seconds = self.text(field, &name).await?.parse();
                    let seconds = seconds.map_err(|_| wrong(&name, "must be a whole number"))?;
                    received.seconds = Some(seconds);
                }
                _ => {
                    let unknown = Invalid::unsupported(&name, "is not supported by this server");
                    return Err(chat::Error::from(unknown).into());
                }
            }
        }
        Ok(())
    }

    async fn receive(&self, mut field: Field<'_>, received: &mut Form) -> Result<(), Error> {
        if received.file.is_some() {
            return Err(wrong("file", "occurs twice; upload one file at a time"));
        }
        let filename = field.file_name().unwrap_or("file.jsonl").to_owned();
        if filename.len() > FILENAME_LEN_MAX || filename.chars().any(char::is_control) {
            let what = format!(
                "has a name of more than {FILENAME_LEN_MAX} bytes or with control characters"
            );
            return Err(wrong("file", &what));
        }
        let upload = self.files.begin(self.owner).await?;
        let file = received.file.insert(Received { upload, filename });
        let mut is_begun = false;
        while let Some(piece) = self.in_time(field.chunk()).await? {
            is_begun = is_begun || begins_json_lines(&piece)?;
            match file.upload.put(piece).await {
                Err(error @ files::Error::TooLarge { .. }) => {
                    self.discard(field).await;
                    return Err(error.into());
                }
                put => put?,
            }
        }
        if is_begun { Ok(()) } else { Err(wrong("file", "is empty")) }
    }

    /// Reads on for a while.
    async fn discard(&self, mut field: Field<'_>) {
        let mut discarded = 0;
        while let Ok(Some(piece)) = self.in_time(field.chunk()).await {
            discarded += piece.len();
            if discarded > DISCARD_MAX {
                return;
            }
        }
    }

    async fn text(&self, mut field: Field<'_>, name: &str) -> Result<String, Error> {
        let mut text = Vec::new();
        while let Some(piece) = self.in_time(field.chunk()).await? {
            text.extend_from_slice(&piece);
            if text.len() > TEXT_LEN_MAX {
                return Err(wrong(name, &format!("has more than {TEXT_LEN_MAX} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| wrong(name, "is not UTF-8"))
    }

    async fn in_time<T>(
        &self,
        read: impl Future<Output = Result<T, MultipartError>>,
    ) -> Result<T, Error> {
        let after = self.patience;
        match tokio::time::timeout(after, read).await {
            Ok(read) => read.map_err(Error::Multipart),
            Err(_) => Err(Error::BodyTimeout { after }),
        }
    }
}

/// Whether a file begins here, and not with white space only.
fn begins_json_lines(piece: &Bytes) -> Result<bool, Error> {
    let piece = piece.strip_prefix(BYTE_ORDER_MARK).unwrap_or(piece);
    match piece.trim_ascii_start().first() {
        None => Ok(false),
        Some(b'{') => Ok(true),
        Some(_) => {
            let what = "is not JSON Lines: a file for batches has one JSON object in each line";
            Err(wrong("file", what))
        }
    }
}

// === impl Form ===

impl Form {
    fn check(&self) -> Result<NewFile, Invalid> {
        let missing = |param| Invalid::new(InvalidCode::Missing, param, "is required");
        let purpose = self.purpose.ok_or_else(|| missing("purpose"))?;
        if purpose != Purpose::Batch {
            let what = "is batch_output, which only the server makes; use \"batch\"";
            return Err(Invalid::new(InvalidCode::Value, "purpose", what));
        }
        let names = ["expires_after[anchor]", "expires_after[seconds]"];
        let expires_after =
            super::check_expires_after(self.anchor.as_deref(), self.seconds, names)?;
        let file = self.file.as_ref().ok_or_else(|| missing("file"))?;
        Ok(NewFile { purpose, filename: file.filename.clone(), expires_after })
    }
}
