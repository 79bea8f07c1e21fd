//! Routes that remember their paths, so that a test can ask whether the API document has them all.

use axum::Router;
use axum::routing::MethodRouter;

use super::Context;

/// A router and the paths in it.
#[derive(Debug)]
pub(super) struct Routes {
    router: Router<Context>,
    paths: Vec<&'static str>,
}

// === impl Routes ===

impl Routes {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), paths: Vec::new() }
    }

    /// Adds a route, as [`Router::route`] does. Its entry in the API document goes to
    /// [`operations`](super::openapi::operations).
    pub(super) fn route(mut self, path: &'static str, methods: MethodRouter<Context>) -> Self {
        self.paths.push(path);
        Self { router: self.router.route(path, methods), paths: self.paths }
    }

    /// Names a path that a route with a wildcard serves, too.
    pub(super) fn serves(mut self, path: &'static str) -> Self {
        self.paths.push(path);
        self
    }

    /// The paths in OpenAPI's notation, which does not tell a parameter that spans slashes from others.
    #[cfg(test)]
    pub(super) fn paths(&self) -> impl Iterator<Item = String> {
        self.paths.iter().map(|path| path.replace("{*", "{"))
    }

    pub(super) fn into_router(self) -> Router<Context> {
        self.router
    }
}
