//! Refuses requests while another coordinator leads. Around every route that needs a key.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::watch;

use super::Error;
use crate::election::Standing;

/// The middleware.
pub(super) async fn refuse(
    State(standing): State<watch::Receiver<Standing>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let leader = {
        let standing = standing.borrow();
        (!standing.leads()).then(|| standing.leader().map(str::to_owned))
    };
    match leader {
        Some(leader) => Err(Error::StandsBy { leader }),
        None => Ok(next.run(request).await),
    }
}

/// Who leads, for a message.
pub(super) fn leads(leader: Option<&str>) -> String {
    leader.map_or_else(|| "and nobody leads yet".to_owned(), |leader| format!("{leader} leads"))
}
