//! `GET /`: a page to try the models in a browser.
//!
//! Its files are part of the program, and it loads nothing from elsewhere: no script, font or image of another origin,
//! and nothing inline, so that the strictest content security policy holds. It is plain HTML, CSS and modules as
//! browsers read them; there is no build step. It is served without a key; its user gives one, with which it calls the
//! API as any client does.

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::{Context, Error};

#[cfg(test)]
mod tests;

/// Only our own files, in nobody's frame. Everything not named falls back to `default-src`.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
}

/// A file of `coordinator/playground`.
macro_rules! file {
    ($name:literal, $content_type:expr) => {
        File {
            name: $name,
            content_type: $content_type,
            content: include_str!(concat!("../../playground/", $name)),
        }
    };
}

const INDEX: File = file!("index.html", HTML);
/// What the page loads, below `playground/`.
const FILES: [File; 11] = [
    file!("icon.svg", SVG),
    file!("style.css", CSS),
    file!("form.css", CSS),
    file!("conversation.css", CSS),
    file!("app.js", JS),
    file!("api.js", JS),
    file!("form.js", JS),
    file!("fields.js", JS),
    file!("answer.js", JS),
    file!("snippets.js", JS),
    file!("dom.js", JS),
];

/// The page and its files.
pub(super) fn router() -> Router<Context> {
    Router::new().route("/", get(index)).route("/playground/{file}", get(file))
}

async fn index() -> Response {
    INDEX.response()
}

async fn file(Path(name): Path<String>, request: Request) -> Result<Response, Error> {
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => Ok(file.response()),
        None => Err(Error::NoRoute { path: request.uri().path().to_owned() }),
    }
}

// === impl File ===

impl File {
    fn response(&self) -> Response {
        let headers = [
            (CONTENT_TYPE, self.content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            // A page must not outlive the server's version that it was made for.
            (CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.content).into_response()
    }
}
