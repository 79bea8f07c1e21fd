//! Open files: a server needs one for each connection, and systems allow few unless they are asked.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit to what the system allows this process; how many that are, `None` for any number.
pub(crate) fn raise() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current
}
