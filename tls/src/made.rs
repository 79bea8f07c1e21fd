//! Configurations of TLS, made anew when the files are new.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::material::Material;

/// The configuration last made, and what it was made of. New files make a new one, so that no session outlives its certificate.
pub(crate) struct Made<C>(Mutex<Option<(Arc<Material>, Arc<C>)>>);

// === impl Made ===

impl<C> Made<C> {
    /// The configuration of `material`: the last one, or what `make` makes.
    ///
    /// # Errors
    /// Those of `make`; then the last one stays.
    pub(crate) fn of(
        &self,
        material: Arc<Material>,
        make: impl FnOnce(&Material) -> Result<C, rustls::Error>,
    ) -> Result<Arc<C>, rustls::Error> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = &*made
            && Arc::ptr_eq(of, &material)
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(make(&material)?);
        *made = Some((material, Arc::clone(&config)));
        Ok(config)
    }
}

impl<C> Default for Made<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> fmt::Debug for Made<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").finish_non_exhaustive()
    }
}
