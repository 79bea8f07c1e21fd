//! The data folder: the key database, and the development key of `switchyard up`.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// File of the development key, readable by its owner only.
const DEV_KEY_FILE: &str = "dev-key";

/// Where a process keeps its files.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// The folder named by `--data`, or the user's.
    pub(crate) fn new(typed: Option<&Path>) -> Self {
        Self { path: typed.map_or_else(crate::config::default_data_dir, Path::to_path_buf) }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder, for its owner only.
    ///
    /// # Errors
    /// It cannot be made; the message names it.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("cannot create the data folder {}", self.path.display()))
    }

    /// The development key: the plain text of a key that `up` makes on its first start and keeps for its owner,
    /// so that clients need not change theirs after a restart. `None` before the first `up`.
    pub(crate) fn dev_key(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.path.join(DEV_KEY_FILE)).ok()?;
        let key = text.trim();
        (!key.is_empty()).then(|| key.to_owned())
    }

    /// The development key, made when there is none.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full; the message names it.
    pub(crate) fn dev_key_or_create(&self) -> anyhow::Result<String> {
        if let Some(key) = self.dev_key() {
            return Ok(key);
        }
        let path = self.path.join(DEV_KEY_FILE);
        let key = random_key().context("cannot read /dev/urandom")?;
        write_private(&path, &key)
            .with_context(|| format!("cannot write the development key {}", path.display()))?;
        Ok(key)
    }
}

/// Writes the whole file or none of it.
fn write_private(path: &Path, key: &str) -> std::io::Result<()> {
    let mut part = path.to_path_buf();
    part.set_extension(format!("{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| writeln!(file, "{key}").and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // Nothing half-written stays; the first error is the one worth reporting.
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// A key of 192 random bits.
fn random_key() -> std::io::Result<String> {
    use std::io::Read as _;
    let mut seed = [0u8; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(format!("sk-dev-{}", hex::encode(seed)))
}

#[cfg(test)]
mod tests;
