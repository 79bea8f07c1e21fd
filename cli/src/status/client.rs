//! Asks a coordinator how it is.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::StatusCode;
use switchyard_coordinator::http::admin::StatusObject;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A coordinator and the key of its admin API.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

// === impl Client ===

impl Client {
    /// A client for the coordinator at `url`.
    ///
    /// # Errors
    /// The URL cannot be one.
    pub(super) fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("--url {url}: expected http://HOST:PORT or https://HOST:PORT");
        }
        let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        Ok(Self { http, url, key })
    }

    /// The coordinator's address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// How the coordinator is now.
    ///
    /// # Errors
    /// It does not answer, or does not accept the key; the message says what to do.
    pub(super) async fn fetch(&self) -> anyhow::Result<StatusObject> {
        let Self { http, url, key } = self;
        let Some(key) = key else {
            bail!(
                "there is no admin key for {url}: pass --admin-key or --admin-key-file; that of `switchyard up` lies \
                 in its data folder, named by --data"
            );
        };
        let request = http.get(format!("{url}/admin/v1/status")).bearer_auth(key);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_timeout() => bail!(
                "no server answers at {url}; start one with `switchyard up`, or name another with --url"
            ),
            Err(error) => return Err(error).context("the request failed"),
        };
        match response.status() {
            StatusCode::OK => response.json().await.with_context(|| {
                format!("{url} does not answer like a coordinator of this release")
            }),
            StatusCode::UNAUTHORIZED => bail!(
                "the server at {url} does not accept the admin key; pass its --admin-key or --admin-key-file"
            ),
            StatusCode::NOT_FOUND => bail!(
                "the server at {url} has no admin API there; start it with --admin-key-file, and name the address \
                 of --admin-listen with --url"
            ),
            status => bail!("the server at {url} answered {status}"),
        }
    }
}
