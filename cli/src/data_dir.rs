//! The data folder: the key database, and the keys that `switchyard up` makes for its owner.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// File of the development key, readable by its owner only.
const DEV_KEY_FILE: &str = "dev-key";
/// File of the admin API's key, readable by its owner only.
const ADMIN_KEY_FILE: &str = "admin-key";

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
        self.read(DEV_KEY_FILE)
    }

    /// The development key, made when there is none.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full; the message names it.
    pub(crate) fn dev_key_or_create(&self) -> anyhow::Result<String> {
        self.read_or_create(DEV_KEY_FILE, "the development key", "sk-dev-")
    }

    /// The key of the admin API of `up`, so that `status` and the owner's other tools find it. `None` before the
    /// first `up`.
    pub(crate) fn admin_key(&self) -> Option<String> {
        self.read(ADMIN_KEY_FILE)
    }

    /// The key of the admin API, made when there is none.
    ///
    /// # Errors
    /// As [`dev_key_or_create`](Self::dev_key_or_create).
    pub(crate) fn admin_key_or_create(&self) -> anyhow::Result<String> {
        self.read_or_create(ADMIN_KEY_FILE, "the admin key", "admin-")
    }

    fn read(&self, file: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path.join(file)).ok()?;
        let key = text.trim();
        (!key.is_empty()).then(|| key.to_owned())
    }

    fn read_or_create(&self, file: &str, what: &str, prefix: &str) -> anyhow::Result<String> {
        if let Some(key) = self.read(file) {
            return Ok(key);
        }
        let path = self.path.join(file);
        let key = random_key(prefix).context("cannot read /dev/urandom")?;
        write_private(&path, &key)
            .with_context(|| format!("cannot write {what} {}", path.display()))?;
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
fn random_key(prefix: &str) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut seed = [0u8; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(format!("{prefix}{}", hex::encode(seed)))
}

#[cfg(test)]
mod tests;
