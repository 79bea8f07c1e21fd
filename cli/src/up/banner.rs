//! What `up` shows once requests are served.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Everything that the reader needs for a first request.
#[derive(Debug)]
pub(super) struct Banner<'a> {
    /// Where the HTTP API listens.
    pub(super) http: SocketAddr,
    /// Where gRPC listens.
    pub(super) grpc: SocketAddr,
    /// The key to show; `None` when the operator chose it and knows it.
    pub(super) key: Option<&'a str>,
    /// Whether the HTTP address serves a page to try the models.
    pub(super) has_playground: bool,
    /// Ids of the models served, at least one.
    pub(super) models: Vec<&'a str>,
    /// Workers of each model.
    pub(super) workers: usize,
    /// From the start of the process until every model was ready.
    pub(super) ready_after: Duration,
    /// What the reader types to run this program.
    pub(super) program: String,
    /// Whether a plain `switchyard chat` finds server and key by itself.
    pub(super) is_default: bool,
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = format!("http://{}", reachable(self.http));
        let mut rows = vec![format!(
            "switchyard {} is ready after {:.2} s",
            env!("CARGO_PKG_VERSION"),
            self.ready_after.as_secs_f64()
        )];
        rows.push(String::new());
        let plural = if self.workers == 1 { "worker" } else { "workers" };
        rows.extend(self.models.iter().map(|m| format!("Model  {m} on {} {plural}", self.workers)));
        rows.push(format!("HTTP   {url}/v1"));
        if self.has_playground {
            rows.push(format!("Web    {url}/"));
        }
        rows.push(format!("gRPC   {}", reachable(self.grpc)));
        rows.push(format!("Key    {}", self.key.unwrap_or("the one you gave")));
        write_box(f, &rows)?;
        let shell_key = self.key.unwrap_or("$SWITCHYARD_API_KEY");
        writeln!(f, "\n  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\")?;
        writeln!(f, "    -H \"Authorization: Bearer {shell_key}\" \\")?;
        let model = self.models.first().copied().unwrap_or_default();
        writeln!(
            f,
            "    -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What are you?\"}}]}}'\n"
        )?;
        if self.is_default {
            writeln!(f, "  {} chat\n", self.program)?;
        } else {
            writeln!(f, "  {} chat --url {url} --api-key {shell_key}\n", self.program)?;
        }
        write!(f, "Ctrl-C stops the coordinator and its workers.")
    }
}

/// An address that a client on this machine can dial.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// How a reader in the current directory runs this program: its name when the shell finds it, else its path.
pub(super) fn program_to_type() -> String {
    let name = env!("CARGO_BIN_NAME");
    let Ok(program) = std::env::current_exe() else { return name.to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(name) == program) {
        return name.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    program.strip_prefix(here).unwrap_or(&program).display().to_string()
}

fn write_box(f: &mut fmt::Formatter<'_>, rows: &[String]) -> fmt::Result {
    let width = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
    let line = "─".repeat(width + 2);
    writeln!(f, "╭{line}╮")?;
    for row in rows {
        writeln!(f, "│ {row:width$} │")?;
    }
    writeln!(f, "╰{line}╯")
}
