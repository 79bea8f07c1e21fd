//! TLS as it is typed: files that belong together.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use switchyard_tls::Files;

use crate::config::Problems;

/// Files of the HTTP API.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "TLS")]
pub(crate) struct HttpArgs {
    /// PEM file with the certificate of the HTTP API and those between it and its authority. Read again when it changes.
    #[arg(long, env = "SWITCHYARD_TLS_CERT", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, env = "SWITCHYARD_TLS_KEY", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
}

/// Files of a process of a cluster.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "TLS")]
pub(crate) struct ClusterArgs {
    /// PEM file with this process's certificate, for `switchyard-coordinator` or `switchyard-worker`. With it, gRPC and the
    /// data plane are protected, and only processes with a certificate take part. Read again when it changes.
    #[arg(long, env = "SWITCHYARD_CLUSTER_TLS_CERT", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, env = "SWITCHYARD_CLUSTER_TLS_KEY", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_tls_key: Option<PathBuf>,
    /// PEM file with the authorities whose certificates the other processes show.
    #[arg(long, env = "SWITCHYARD_CLUSTER_TLS_CA", value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_tls_ca: Option<PathBuf>,
}

// === impl HttpArgs ===

impl HttpArgs {
    /// Both files, or none.
    pub(crate) fn resolve(&self, problems: &mut Problems) -> Option<Files> {
        let files = [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)];
        let [certificate, key] = all_or_none(files, problems)?;
        Some(Files { certificate, key, authorities: None })
    }
}

// === impl ClusterArgs ===

impl ClusterArgs {
    /// All files, or none.
    pub(crate) fn resolve(&self, problems: &mut Problems) -> Option<Files> {
        let files = [
            ("--cluster-tls-cert", &self.cluster_tls_cert),
            ("--cluster-tls-key", &self.cluster_tls_key),
            ("--cluster-tls-ca", &self.cluster_tls_ca),
        ];
        let [certificate, key, authority] = all_or_none(files, problems)?;
        Some(Files { certificate, key, authorities: Some(authority) })
    }
}

/// Protection that is only half there would be none, so it is a mistake.
fn all_or_none<const N: usize>(
    files: [(&str, &Option<PathBuf>); N],
    problems: &mut Problems,
) -> Option<[PathBuf; N]> {
    let absent: Vec<_> =
        files.iter().filter(|(_, path)| path.is_none()).map(|(flag, _)| *flag).collect();
    if absent.is_empty() {
        return Some(files.map(|(_, path)| path.clone().unwrap_or_default()));
    }
    if absent.len() < N {
        let all = files.map(|(flag, _)| flag).join(", ");
        let absent = absent.join(", ");
        return problems.take(Err(format!("{all} belong together; not given: {absent}")));
    }
    None
}
