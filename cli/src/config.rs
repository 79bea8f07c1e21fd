//! Configuration: flags, environment and an optional TOML file become checked values, on one path.
//!
//! A command's `Args` is the configuration *as typed*: clap fills it from flags and `SWITCHYARD_*` variables,
//! figment lays it over the file (which may hold the same names and no others), and the command resolves it into
//! the library's options through [`Problems`], so that every mistake is reported at once.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A configuration that cannot be used; the process exits with status 64.
#[derive(Debug)]
pub(crate) struct Invalid {
    problems: Vec<String>,
}

/// Collects every mistake before the first is reported.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<String>,
}

/// Lays `typed` (flags and environment) over the file's values; a name that `T` does not have is an error.
///
/// # Errors
/// The file cannot be read or parsed, or holds an unknown name or a value of the wrong type.
pub(crate) fn merge<T>(file: Option<&Path>, typed: &T) -> Result<T, Invalid>
where
    T: Serialize + DeserializeOwned,
{
    let mut figment = Figment::new();
    if let Some(path) = file {
        if !path.is_file() {
            return Err(Invalid::one(format!("--config {}: no such file", path.display())));
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    figment
        .merge(Serialized::defaults(typed))
        .extract()
        .map_err(|errors| Invalid { problems: errors.into_iter().map(|e| e.to_string()).collect() })
}

/// The process's environment, as far as it is Unicode; for settings that a library names.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The user's data directory for this program: `$XDG_DATA_HOME/switchyard`, `~/.local/share/switchyard`, or
/// `.switchyard` in the current directory for a user without a home.
pub(crate) fn default_data_dir() -> PathBuf {
    match std::env::var_os("XDG_DATA_HOME").map(PathBuf::from) {
        Some(xdg) if xdg.is_absolute() => xdg.join("switchyard"),
        _ => match std::env::home_dir() {
            Some(home) if home.is_absolute() => home.join(".local/share/switchyard"),
            _ => PathBuf::from(".switchyard"),
        },
    }
}

/// Where compiled GPU kernels are kept unless told otherwise: in the user's cache directory for this program,
/// `$XDG_CACHE_HOME/switchyard` or `~/.cache/switchyard`; for a user without a home in the current directory.
pub(crate) fn default_kernel_cache() -> PathBuf {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    kernel_cache_in(xdg, std::env::home_dir())
}

fn kernel_cache_in(xdg: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    let dir = match (xdg, home) {
        (Some(xdg), _) if xdg.is_absolute() => xdg.join("switchyard"),
        (_, Some(home)) if home.is_absolute() => home.join(".cache/switchyard"),
        _ => PathBuf::from(".switchyard"),
    };
    dir.join("kernels")
}

// === impl Problems ===

impl Problems {
    /// Keeps the value, or notes what is wrong with it.
    pub(crate) fn take<T, E: fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|problem| self.found.push(problem.to_string())).ok()
    }

    /// The value of a setting that has no default.
    pub(crate) fn required<T>(&mut self, flag: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.found.push(format!("{flag} is required"));
        }
        value
    }

    /// A listening address such as `127.0.0.1:8080`.
    pub(crate) fn address(&mut self, flag: &str, typed: &str) -> Option<SocketAddr> {
        self.take(typed.parse().map_err(|_| {
            format!("{flag} {typed}: expected an IP address and a port, such as 127.0.0.1:8080")
        }))
    }

    /// A number of things, at least one.
    pub(crate) fn count(&mut self, flag: &str, typed: usize, max: usize) -> Option<NonZeroUsize> {
        let checked = NonZeroUsize::new(typed).filter(|count| count.get() <= max);
        if checked.is_none() {
            self.found.push(format!("{flag} {typed}: must lie between 1 and {max}"));
        }
        checked
    }

    /// Fails with everything noted so far.
    pub(crate) fn finish(self) -> Result<(), Invalid> {
        if self.found.is_empty() { Ok(()) } else { Err(Invalid { problems: self.found }) }
    }
}

// === impl Invalid ===

impl Invalid {
    /// A configuration with one mistake.
    pub(crate) fn one(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => f.write_str(problem),
            problems => {
                write!(f, "the configuration has {} mistakes", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
            }
        }
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests;
