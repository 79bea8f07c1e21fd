//! Names, labels and units of this crate's metrics. No other file spells a metric's name.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::Service;

/// Gauge, Unix seconds: end of the validity of the certificate in use, by `usage`.
pub const CERTIFICATE_EXPIRY: &str = "switchyard_tls_certificate_expiry_timestamp_seconds";
/// Counter: changes of the files, by `usage` and `outcome`.
pub const RELOADS_TOTAL: &str = "switchyard_tls_reloads_total";
/// Counter: handshakes that failed on this side's ports, by `service` and `reason`.
pub const HANDSHAKES_FAILED_TOTAL: &str = "switchyard_tls_handshakes_failed_total";
/// Label: `http` or `cluster`.
pub const USAGE: &str = "usage";
/// Label: [`TAKEN_OVER`] or [`REFUSED`].
pub const OUTCOME: &str = "outcome";
/// Label: `http`, `grpc`, `control` or `data`.
pub const SERVICE: &str = "service";
/// Label: `timeout`, `no_tls`, `no_certificate`, `bad_certificate`, `expired`, `incompatible`, `refused_by_peer`,
/// `connection` or `other`.
pub const REASON: &str = "reason";
/// Value of [`OUTCOME`]: the new files are in use.
pub const TAKEN_OVER: &str = "taken_over";
/// Value of [`OUTCOME`]: the new files are not usable, the old ones stay.
pub const REFUSED: &str = "refused";

/// Tells the installed recorder what each metric means.
pub fn describe() {
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "End of the validity of the certificate in use, in Unix seconds."
    );
    describe_counter!(RELOADS_TOTAL, "Changes of TLS files, by outcome.");
    describe_counter!(HANDSHAKES_FAILED_TOTAL, "TLS handshakes that failed, by reason.");
}

pub(crate) fn expiry(usage: &'static str, not_after: i64) {
    gauge!(CERTIFICATE_EXPIRY, USAGE => usage).set(not_after as f64);
}

pub(crate) fn reloaded(usage: &'static str, outcome: &'static str) {
    counter!(RELOADS_TOTAL, USAGE => usage, OUTCOME => outcome).increment(1);
}

pub(crate) fn handshake_failed(service: Service, reason: &'static str) {
    let service = match service {
        Service::Http => "http",
        Service::Clients => "grpc",
        Service::Control => "control",
        Service::Data => "data",
    };
    counter!(HANDSHAKES_FAILED_TOTAL, SERVICE => service, REASON => reason).increment(1);
}
