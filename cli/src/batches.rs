//! Settings of files and batches, which `up` and `coordinator` share.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use switchyard_coordinator::options::{BatchLimits, FileLimits, FileStore, Secret};

use crate::config::Problems;

/// What the URL of a bucket begins with.
const S3_SCHEME: &str = "s3://";
/// What the URL of a folder begins with.
const FILE_SCHEME: &str = "file://";
/// What the names of a bucket's settings begin with in the environment.
const S3_SETTINGS: &str = "AWS_";
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// Arguments of both commands.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[group(skip)]
pub(crate) struct Args {
    /// Where uploaded files are kept: a folder, or s3://BUCKET/PREFIX with the AWS_… variables [default: in the data folder].
    #[arg(long, env = "SWITCHYARD_FILE_STORE", value_name = "URL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_store: Option<String>,
    /// Largest file that may be uploaded, in MiB [default: 512].
    #[arg(long, env = "SWITCHYARD_FILE_MIB_MAX", value_name = "MIB")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_mib_max: Option<u64>,
    /// Most files of a key [default: 10000].
    #[arg(long, env = "SWITCHYARD_FILES_PER_KEY_MAX", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files_per_key_max: Option<u32>,
    /// Days that a file is kept that does not say; 0 keeps it until it is deleted [default: 30].
    #[arg(long, env = "SWITCHYARD_FILE_DAYS", value_name = "DAYS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file_days: Option<u32>,
    /// Most requests in a batch [default: 50000].
    #[arg(long, env = "SWITCHYARD_BATCH_LINES_MAX", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_lines_max: Option<usize>,
    /// Most requests of batches in flight, over all of them [default: 32].
    #[arg(long, env = "SWITCHYARD_BATCH_CONCURRENCY", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_concurrency: Option<usize>,
    /// Most batches of a key that are not over [default: 100].
    #[arg(long, env = "SWITCHYARD_BATCHES_PER_KEY_MAX", value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batches_per_key_max: Option<u32>,
}

/// What the arguments come to.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) store: Option<FileStore>,
    pub(crate) files: FileLimits,
    pub(crate) batches: BatchLimits,
}

// === impl Args ===

impl Args {
    /// Checks the arguments. `environment` is where a bucket's settings come from.
    pub(crate) fn resolve(
        &self,
        environment: impl Iterator<Item = (String, String)>,
        problems: &mut Problems,
    ) -> Settings {
        let mut files = FileLimits::default();
        if let Some(mib) = self.file_mib_max {
            at_least_one("--file-mib-max", mib, problems);
            files.file_bytes_max = mib.saturating_mul(MIB);
        }
        if let Some(max) = self.files_per_key_max {
            at_least_one("--files-per-key-max", max.into(), problems);
            files.files_per_key_max = max;
        }
        if let Some(days) = self.file_days {
            let days = Duration::from_secs(u64::from(days) * 86_400);
            files.expires_after = (!days.is_zero()).then_some(days);
        }
        let mut batches = BatchLimits::default();
        if let Some(max) = self.batch_lines_max {
            at_least_one("--batch-lines-max", max as u64, problems);
            batches.lines_max = max;
        }
        if let Some(max) = self.batch_concurrency {
            problems.count("--batch-concurrency", max, CONCURRENCY_MAX);
            batches.concurrency = max;
        }
        if let Some(max) = self.batches_per_key_max {
            at_least_one("--batches-per-key-max", max.into(), problems);
            batches.per_key_max = max;
        }
        let store = self.file_store.as_deref().and_then(|url| {
            problems
                .take(store(url, environment).map_err(|why| format!("--file-store {url}: {why}")))
        });
        Settings { store, files, batches }
    }
}

/// More requests than any cluster computes at once.
const CONCURRENCY_MAX: usize = 4096;

fn at_least_one(flag: &str, value: u64, problems: &mut Problems) {
    if value == 0 {
        problems.take::<(), _>(Err(format!("{flag} 0: must be at least 1")));
    }
}

fn store(
    url: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<FileStore, &'static str> {
    if let Some(place) = url.strip_prefix(S3_SCHEME) {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err("names no bucket; expected s3://BUCKET or s3://BUCKET/PREFIX");
        }
        let settings = environment.filter(|(name, _)| name.starts_with(S3_SETTINGS));
        return Ok(FileStore::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            settings: settings.map(|(name, value)| (name, Secret::new(value))).collect(),
        });
    }
    let path = url.strip_prefix(FILE_SCHEME).unwrap_or(url);
    if path.is_empty() || path.contains("://") {
        return Err("expected a folder or s3://BUCKET/PREFIX");
    }
    Ok(FileStore::Folder(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &Args) -> Result<Settings, String> {
        let mut problems = Problems::default();
        let environment = [("AWS_REGION", "here"), ("HOME", "/root")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = args.resolve(environment.into_iter(), &mut problems);
        problems.finish().map(|()| settings).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn stores_are_folders_or_buckets() {
        let region = vec![("AWS_REGION".to_owned(), Secret::new("here"))];
        let s3 = |prefix: &str| FileStore::S3 {
            bucket: "b".to_owned(),
            prefix: prefix.to_owned(),
            settings: region.clone(),
        };
        for (url, expect) in [
            ("/var/files", Some(FileStore::Folder("/var/files".into()))),
            ("file:///var/files", Some(FileStore::Folder("/var/files".into()))),
            ("files", Some(FileStore::Folder("files".into()))),
            ("s3://b", Some(s3(""))),
            ("s3://b/a/c/", Some(s3("a/c"))),
            ("s3://", None),
            ("gs://b", None),
            ("", None),
        ] {
            let args = Args { file_store: Some(url.to_owned()), ..Args::default() };
            let found = resolve(&args).map(|settings| settings.store);
            assert_eq!(found.ok().flatten(), expect, "{url}");
        }
    }

    #[test]
    fn limits_replace_the_defaults_and_every_mistake_is_told() {
        let settings = resolve(&Args {
            file_mib_max: Some(1),
            file_days: Some(0),
            batch_lines_max: Some(7),
            ..Args::default()
        });
        let settings = settings.unwrap();
        assert_eq!(settings.files.file_bytes_max, 1 << 20);
        assert_eq!(settings.files.expires_after, None);
        assert_eq!(settings.batches.lines_max, 7);
        assert_eq!(settings.batches.concurrency, BatchLimits::default().concurrency);
        let wrong = resolve(&Args {
            files_per_key_max: Some(0),
            batch_concurrency: Some(0),
            batches_per_key_max: Some(0),
            ..Args::default()
        });
        let wrong = wrong.unwrap_err();
        for flag in ["--files-per-key-max", "--batch-concurrency", "--batches-per-key-max"] {
            assert!(wrong.contains(flag), "{wrong}");
        }
    }
}
