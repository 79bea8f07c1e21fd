//! Whose request it is, and whether it may begin. Around every route under `/v1`.
//!
//! A request that computes something (a `POST`) takes a [`Lease`], which is held until the last byte of the answer is out
//! or the client has gone. Handlers find the [`Account`] and the `Lease` in the request's extensions.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use http_body::{Frame, SizeHint};
use tracing::Instrument as _;

use super::{Error, bearer, peer};
use crate::auth::failures::{Door, Failure};
use crate::auth::limiter::{Allowance, Allowances};
use crate::auth::{Account, Accounts, Lease};

/// Headers of a limit: its value, what is left of it, and when it is whole again.
struct Headers {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

const REQUESTS: Headers = Headers {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};
const TOKENS: Headers = Headers {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};

/// A body that holds a lease until its end.
struct Held {
    body: Body,
    lease: Option<Lease>,
}

/// The middleware.
pub(super) async fn authenticate(
    State(accounts): State<Accounts>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let peer = peer(request.extensions());
    let header = request.headers().get(AUTHORIZATION);
    let Some(bearer) = header.and_then(|header| bearer(header.as_bytes())) else {
        accounts.failures().note(Door::Http, Failure::Missing, peer);
        return Err(Error::MissingKey);
    };
    let authenticate = accounts.authenticate_at(Door::Http, peer, bearer);
    let account = authenticate.instrument(tracing::info_span!("authenticate")).await?;
    tracing::Span::current().record("key.id", account.key_id().get());
    let mut response = match admit(&accounts, &account, request.method()) {
        Ok(lease) => {
            request.extensions_mut().insert(account.clone());
            if let Some(lease) = &lease {
                request.extensions_mut().insert(lease.clone());
            }
            let response = next.run(request).await;
            response.map(|body| Body::new(Held { body, lease }))
        }
        Err(denied) => denied.into_response(),
    };
    insert_allowances(response.headers_mut(), &accounts.allowances(&account));
    Ok(response)
}

fn admit(accounts: &Accounts, account: &Account, method: &Method) -> Result<Option<Lease>, Error> {
    // What only looks something up is not worth a limit.
    if method != Method::POST {
        return Ok(None);
    }
    Ok(Some(accounts.admit(account)?))
}

fn insert_allowances(headers: &mut HeaderMap, allowances: &Allowances) {
    let limits = [(REQUESTS, allowances.requests), (TOKENS, allowances.tokens)];
    for (names, allowance) in limits {
        let Some(Allowance { limit, remaining, reset }) = allowance else { continue };
        headers.insert(names.limit, HeaderValue::from(limit));
        headers.insert(names.remaining, HeaderValue::from(remaining));
        if let Ok(reset) = HeaderValue::try_from(reset_text(reset)) {
            headers.insert(names.reset, reset);
        }
    }
}

/// A duration as OpenAI writes it: `120ms`, `1.5s`, `6m0s`. Rounded up to milliseconds.
pub(super) fn reset_text(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    // The shortest form of the fraction, and none of a whole number.
    let seconds = Duration::from_millis(u64::try_from(millis).unwrap_or(0)).as_secs_f64();
    match (minutes, millis) {
        (0, 0) => "0s".to_owned(),
        (0, ..1000) => format!("{millis}ms"),
        (0, _) => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

// === impl Held ===

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            self.lease = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
